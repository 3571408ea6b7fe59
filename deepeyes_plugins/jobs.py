"""Many pieces of work: so many at a time, each result on disk as it comes, resumed where it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from deepeyes_plugins.files import append_line, whole_file

Advance = Callable[[int, int], None]
"""Is told after each result how many there are and how many there will be."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Record = TypeVar("Record", bound=BaseModel)

FEWEST_FAILURES = 8
"""Failures in a row that never stop a run, however little is in work at a time. Our own bound."""


class ServiceLostError(Exception):
    """A service that all pieces of work need does not come back; the message says why."""


class Patience:
    """Notices that nothing succeeds any more: as many failures in a row as pieces are in work."""

    def __init__(self, concurrency: int) -> None:
        """Begin to count."""
        self._limit = max(concurrency, FEWEST_FAILURES)
        self._failures = 0

    def succeed(self) -> None:
        """Take in that something worked."""
        self._failures = 0

    def fail(self, reason: str) -> None:
        """Take in a failure of ours.

        Raises:
            ServiceLostError: It is one too many.
        """
        self._failures += 1
        if self._failures >= self._limit:
            raise ServiceLostError(f"{self._failures} failures in a row, the last one: {reason}")


async def work_through(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], *, concurrency: int
) -> AsyncGenerator[Result]:
    """Do many pieces of work at a time and yield each result as it comes.

    Close it (``contextlib.aclosing``) where the loop over it may end early: only then nothing is
    in work any more.

    Args:
        items: Read as they are needed, in a thread: they may come from a large file.
        work: Does one; what it raises ends everything. It never returns ``None``.
        concurrency: Pieces in work at a time.
    """
    source = iter(items)
    reading = asyncio.Lock()
    results: asyncio.Queue[Result | None] = asyncio.Queue()

    async def work_on() -> None:
        while True:
            async with reading:
                item = await asyncio.to_thread(next, source, None)
            if item is None:
                return
            results.put_nowait(await work(item))

    async def work_all() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work_on())

    working = asyncio.ensure_future(work_all())
    working.add_done_callback(lambda _: results.put_nowait(None))
    try:
        while (result := await results.get()) is not None:
            yield result
        await working
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


class Ledger(Generic[Record]):
    """The results of a job as JSON lines: appended one by one, found again by the next run."""

    def __init__(self, path: Path, kind: type[Record]) -> None:
        """Keep records of ``kind`` in ``path``; nothing is read yet."""
        self.path = path
        self._kind = kind

    def resume(self, belongs: Callable[[Record], bool]) -> list[Record]:
        """Return what an earlier run left, and rewrite the file to hold nothing else.

        Args:
            belongs: Whether a record is one of this job. Others, such as those by other settings,
                are removed, and so are torn lines.

        Raises:
            OSError: The file cannot be read or written.
        """
        kept = [record for record in self._records() if belongs(record)]
        with whole_file(self.path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(record.model_dump_json() + "\n" for record in kept)
        return kept

    def append(self, record: Record) -> None:
        """Add a record, whole or not at all.

        Raises:
            OSError: The file cannot be written, for instance because the disk is full.
        """
        append_line(self.path, record.model_dump_json().encode())

    def _records(self) -> Iterable[Record]:
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    yield self._kind.model_validate_json(line)
                except ValidationError:
                    continue
