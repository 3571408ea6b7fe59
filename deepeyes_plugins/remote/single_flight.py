"""Request coalescing (single-flight): concurrent calls of one key share one execution."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class SingleFlight(Generic[Key, Result]):
    """Shares calls between the tasks of one event loop; results are not cached."""

    def __init__(self) -> None:
        self._calls: dict[Key, asyncio.Task[Result]] = {}

    def __contains__(self, key: Key) -> bool:
        """Return whether a call of ``key`` is in flight."""
        return key in self._calls

    async def run(self, key: Key, call: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of the call of ``key`` in flight; if there is none, run ``call``.

        The call runs in a task of its own, so that cancelling one caller does not affect others.

        Raises:
            Exception: The error of the call, for all callers that wait for it.
        """
        task = self._calls.get(key)
        if task is None:
            task = self._calls[key] = asyncio.ensure_future(_awaited(call))
            task.add_done_callback(lambda done: self._remove(key, done))
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Cancel every call and wait until it has ended."""
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def _remove(self, key: Key, done: asyncio.Task[Result]) -> None:
        del self._calls[key]
        if not done.cancelled():
            done.exception()  # Marks it as retrieved, in case no caller is left.


async def _awaited(call: Callable[[], Awaitable[Result]]) -> Result:
    return await call()
