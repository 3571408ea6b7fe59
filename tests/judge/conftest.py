"""What tests of the judge share."""

from __future__ import annotations

import pytest

from tests.serving import LocalServer


@pytest.fixture
def unused_port() -> int:
    """A port of loopback that nobody listens on."""
    with LocalServer() as server:
        return server.port
