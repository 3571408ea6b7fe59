"""What holds for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest


def pytest_configure() -> None:
    """Let Ctrl-C reach the commands that tests start.

    A shell starts what runs in its background with SIGINT ignored, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def own_variables() -> Iterator[None]:
    """Give every file of tests the variables that the first one had, whatever ran before it.

    An embedded sandbox puts its URL and token into the environment of its process tree.
    """
    before = {name: value for name, value in os.environ.items() if name.startswith("DEEPEYES_")}
    yield
    for name in [name for name in os.environ if name.startswith("DEEPEYES_")]:
        del os.environ[name]
    os.environ.update(before)
