"""The circuit of a service that is down is open, and calls wait for it."""

from __future__ import annotations

import asyncio

import pytest

from deepeyes_plugins.remote.errors import RemoteUnavailableError
from deepeyes_plugins.rollout import InfrastructureError
from deepeyes_plugins.tools.gate import Gate


class Down(RemoteUnavailableError):
    """The service is down."""


class Service:
    """Is down until it is told otherwise, and counts who asks."""

    def __init__(self) -> None:
        self.asked = 0
        self.works = False

    async def ask(self) -> str:
        self.asked += 1
        await asyncio.sleep(0)
        if not self.works:
            raise Down("no answer")
        return "here"


def make_gate(*, failures: int = 5, seconds: float = 0.05, patience: float = 10) -> Gate:
    return Gate("library", failures=failures, seconds=seconds, patience=patience)


async def test_a_dead_service_is_not_hammered_by_512_trajectories() -> None:
    service, gate = Service(), make_gate(failures=3, seconds=0.1, patience=0.35)
    waiting = [gate.call(service.ask, repeatable=True) for _ in range(512)]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, InfrastructureError) for result in results)
    # All had been sent before the first failed; after that one call tried at a time.
    assert 512 < service.asked <= 512 + 16

    before = service.asked
    later = [gate.call(service.ask, repeatable=False) for _ in range(512)]
    results = await asyncio.gather(*later, return_exceptions=True)
    assert all(isinstance(result, InfrastructureError) for result in results)
    assert service.asked <= before + 16


async def test_all_go_on_when_it_is_back() -> None:
    service, gate = Service(), make_gate(failures=1)
    with pytest.raises(InfrastructureError, match="the library failed: no answer"):
        await gate.call(service.ask, repeatable=False)
    waiting = [asyncio.ensure_future(gate.call(service.ask, repeatable=False)) for _ in range(9)]
    await asyncio.sleep(0)
    assert service.asked == 1

    service.works = True
    assert await asyncio.gather(*waiting) == ["here"] * 9
    assert not gate.circuit.is_open


async def test_what_can_be_repeated_is_repeated_until_it_succeeds() -> None:
    service, gate = Service(), make_gate()
    answer = asyncio.ensure_future(gate.call(service.ask, repeatable=True))
    while service.asked < 2:
        await asyncio.sleep(0)
    service.works = True
    assert await answer == "here"


async def test_patience_has_an_end() -> None:
    service, gate = Service(), make_gate(patience=0)
    with pytest.raises(InfrastructureError, match="library is down for more than 0 s: no answer"):
        await gate.call(service.ask, repeatable=True)
    assert service.asked == 1


async def test_a_refusal_is_an_answer() -> None:
    gate = make_gate(failures=1)

    async def refuse() -> None:
        raise PermissionError("not you")

    for _ in range(3):
        with pytest.raises(PermissionError):
            await gate.call(refuse, repeatable=True)
    assert not gate.circuit.is_open
