"""Concurrent jobs over many items: bounded concurrency, results on disk, resumption."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from deepeyes_plugins.files import append_line, whole_file

Advance = Callable[[int, int], None]
"""Called after each result with the number of results and the total."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Record = TypeVar("Record", bound=BaseModel)

MIN_FAILURES = 8
"""Minimum number of consecutive failures that stop a job, whatever its concurrency."""


class ServiceLostError(Exception):
    """A service that every item needs stays unavailable; the message contains the last error."""


class FailureLimit:
    """Stops a job after as many consecutive infrastructure errors as items run concurrently.

    It is no circuit breaker: the services have their own, and a stopped job does not go on.
    """

    def __init__(self, concurrency: int) -> None:
        self._limit = max(concurrency, MIN_FAILURES)
        self._failures = 0

    def succeed(self) -> None:
        """Reset the count after a success."""
        self._failures = 0

    def fail(self, reason: str) -> None:
        """Count an infrastructure error.

        Raises:
            ServiceLostError: The limit is reached.
        """
        self._failures += 1
        if self._failures >= self._limit:
            raise ServiceLostError(f"{self._failures} consecutive failures, the last one: {reason}")


async def work_through(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], *, concurrency: int
) -> AsyncGenerator[Result]:
    """Process items concurrently and yield each result when it is ready.

    If the loop over it may end early, close it (``contextlib.aclosing``), which cancels the items
    that are being processed.

    Args:
        items: Read lazily in a thread, since they may come from a large file.
        work: Processes one item. An exception ends the job. It must not return ``None``.
        concurrency: Maximum number of items processed at a time.
    """
    source = iter(items)
    reading = asyncio.Lock()
    results: asyncio.Queue[Result | None] = asyncio.Queue()

    async def worker() -> None:
        while True:
            async with reading:
                item = await asyncio.to_thread(next, source, None)
            if item is None:
                return
            results.put_nowait(await work(item))

    async def run_workers() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())

    running = asyncio.ensure_future(run_workers())
    running.add_done_callback(lambda _: results.put_nowait(None))
    try:
        while (result := await results.get()) is not None:
            yield result
        await running
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class Ledger(Generic[Record]):
    """Results of a job as JSON lines, from which the next run resumes."""

    def __init__(self, path: Path, model: type[Record]) -> None:
        """Initialise without reading ``path``; each line is a ``model``."""
        self.path = path
        self._model = model

    def resume(self, belongs: Callable[[Record], bool]) -> list[Record]:
        """Return the records of an earlier run, and remove all other lines from the file.

        Args:
            belongs: Whether a record belongs to this job. Others, such as those of other settings,
                are removed, and so are truncated lines.

        Raises:
            OSError: The file cannot be read or written.
        """
        records = [record for record in self._records() if belongs(record)]
        with (
            whole_file(self.path, private=True) as partial,
            partial.open("w", encoding="utf-8") as file,
        ):
            file.writelines(record.model_dump_json() + "\n" for record in records)
        return records

    def append(self, record: Record) -> None:
        """Append a record atomically.

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
                    yield self._model.model_validate_json(line)
                except ValidationError:
                    continue
