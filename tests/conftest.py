"""What holds for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TRAININGS = {
    "tests/verl/test_training_run.py",
    "tests/verl/test_training_runs.py",
    "tests/verl/test_judge_outage.py",
    "tests/quickstart/test_quickstart.py",
    *(
        str(path.relative_to(Path(__file__).parents[1]))
        for path in Path(__file__).parent.glob("vllm/test_*")
    ),
}
"""Files of tests that start vLLM or train with verl, which takes 8 GB: one at a time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the trainings, which take longest together."""
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in TRAININGS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file in one process, which keeps their servers, and all trainings."""
    from xdist.scheduler import LoadFileScheduling

    class FilesAndTrainings(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "trainings" if file in TRAININGS else file

    config.option.loadscopereorder = False
    return FilesAndTrainings(config, log)


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
