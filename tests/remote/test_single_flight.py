"""Equal calls at the same time are one call."""

from __future__ import annotations

import asyncio

import pytest

from deepeyes_plugins.remote.single_flight import SingleFlight


class Counted:
    """A call that waits until it is let go, and counts how often it was made."""

    def __init__(self) -> None:
        self.made = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.made += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return self.made


async def test_equal_calls_share_a_result_and_later_ones_do_not() -> None:
    flights, call = SingleFlight[str, int](), Counted()
    waiting = [asyncio.ensure_future(flights.run("a", call)) for _ in range(5)]
    await asyncio.sleep(0)
    assert "a" in flights
    call.go.set()
    assert await asyncio.gather(*waiting) == [1] * 5
    assert "a" not in flights
    assert await flights.run("a", call) == 2


async def test_one_who_is_cancelled_leaves_the_others_waiting() -> None:
    flights, call = SingleFlight[str, int](), Counted()
    first = asyncio.ensure_future(flights.run("a", call))
    second = asyncio.ensure_future(flights.run("a", call))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    call.go.set()
    assert await second == 1


async def test_all_who_wait_get_the_error_and_the_next_call_is_made_again() -> None:
    flights, call = SingleFlight[str, int](), Counted()
    call.error = ValueError("no")
    waiting = [asyncio.ensure_future(flights.run("a", call)) for _ in range(3)]
    await asyncio.sleep(0)
    call.go.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in found] == ["no"] * 3
    call.error = None
    assert await flights.run("a", call) == 2


async def test_closing_cancels_what_is_in_flight() -> None:
    flights, call = SingleFlight[str, int](), Counted()
    waiting = asyncio.ensure_future(flights.run("a", call))
    await asyncio.sleep(0)
    await flights.aclose()
    assert "a" not in flights
    with pytest.raises(asyncio.CancelledError):
        await waiting
