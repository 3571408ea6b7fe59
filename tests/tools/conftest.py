"""A real sandbox server for the tools, and no time limit per generated example."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings

from deepeyes_plugins.sandbox.embedded import EmbeddedServer, start_server
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.resources import Resources

settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

TOKEN_VARIABLE = "DEEPEYES_TOKEN_TOOL_TESTS"


@pytest.fixture(scope="session")
def sandbox_server() -> Iterator[EmbeddedServer]:
    with (
        pytest.MonkeyPatch.context() as environment,
        start_server(SandboxSettings(token_env=TOKEN_VARIABLE)) as server,
    ):
        environment.setenv(TOKEN_VARIABLE, server.token)
        yield server


@pytest.fixture
async def resources(sandbox_server: EmbeddedServer) -> AsyncIterator[Resources]:
    sandbox = SandboxSettings(url=sandbox_server.url, token_env=TOKEN_VARIABLE, cell_timeout=20)
    shared = Resources(AgentSettings(sandbox=sandbox))
    yield shared
    await shared.aclose()
