"""Engines on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.search.engines import ENGINES, KEY, KEY_VARIABLE, Engine, Engines, Script
from tests.serving import LocalServer


@pytest.fixture(scope="session")
def engines() -> Iterator[tuple[Engines, str]]:
    scripts = Engines()
    with LocalServer(*scripts.routes()) as server:
        yield scripts, server.root


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    return request.param


@pytest.fixture
def script(engine: Engine, engines: tuple[Engines, str]) -> Iterator[Script]:
    made = engines[0].scripts[engine.name] = Script(engine)
    yield made
    if made.holds is not None:
        made.holds.set()


@pytest.fixture
def url(engine: Engine, script: Script, engines: tuple[Engines, str]) -> str:
    return f"{engines[1]}/{engine.name}"
