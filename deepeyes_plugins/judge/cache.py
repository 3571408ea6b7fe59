"""Verdict cache: equal comparisons share verdicts and requests, also across processes.

The trajectories of a group often have equal answers, which several reward workers judge at the same
time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from cachetools import LRUCache
from filelock import AsyncFileLock, Timeout

from deepeyes_plugins.judge.contracts import Verdict
from deepeyes_plugins.remote.single_flight import SingleFlight
from deepeyes_plugins.sqlite_file import SqliteFile

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_TRIM_EVERY = 1000
"""Number of added verdicts after which the file is trimmed."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, correct INTEGER NOT NULL, at REAL NOT NULL
) WITHOUT ROWID
"""

P = ParamSpec("P")
T = TypeVar("T")


def cache_key(*parts: str) -> str:
    """Return the hexadecimal SHA-256 of a list of texts; lengths are hashed too."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


class VerdictCache:
    """Verdicts of one event loop, shared with other processes of the machine through a folder."""

    def __init__(self, size: int, folder: Path | None, timeout: float) -> None:
        """Initialise without opening anything.

        Args:
            size: Maximum number of cached verdicts; 0 disables the cache and request coalescing.
            folder: Folder in which processes share verdicts; ``None`` to share none.
            timeout: Seconds to wait for another process that asks for the same verdict.
        """
        self._size = size
        self._cached: LRUCache[str, bool] = LRUCache(size)
        self._flights: SingleFlight[str, Verdict] = SingleFlight()
        self._shared = _SharedVerdicts(folder, size) if folder is not None and size else None
        self._timeout = timeout

    async def verdict(self, key: str, ask: Callable[[], Awaitable[Verdict]]) -> Verdict:
        """Return the verdict of ``key``; call ``ask`` if it is neither cached nor under way.

        Cancelling one caller does not affect others.

        Raises:
            Exception: The error of ``ask``, for all callers that wait for it; it is not cached.
        """
        if not self._size:
            return await ask()
        started = time.monotonic()
        if key in self._cached:
            return Verdict(self._cached[key], cached=True, seconds=0.0, calls=0)
        first = key not in self._flights
        verdict = await self._flights.run(key, lambda: self._find(key, ask))
        if first:
            return verdict
        return Verdict(verdict.correct, cached=True, seconds=time.monotonic() - started, calls=0)

    async def aclose(self) -> None:
        """Cancel requests and close the file."""
        await self._flights.aclose()
        if self._shared is not None:
            await self._shared.aclose()

    async def _find(self, key: str, ask: Callable[[], Awaitable[Verdict]]) -> Verdict:
        verdict = await self._ask_once(key, ask)
        self._cached[key] = verdict.correct
        return verdict

    async def _ask_once(self, key: str, ask: Callable[[], Awaitable[Verdict]]) -> Verdict:
        if self._shared is None:
            return await ask()
        started = time.monotonic()
        if (correct := await self._shared.get(key)) is None:
            async with self._shared.claim(key, self._timeout):
                if (correct := await self._shared.get(key)) is None:
                    verdict = await ask()
                    await self._shared.put(key, verdict.correct)
                    return verdict
        return Verdict(correct, cached=True, seconds=time.monotonic() - started, calls=0)


class _SharedVerdicts:
    """Verdicts in a SQLite file, and locks for those under way.

    A full disk or a broken file logs a warning and costs further requests, never a verdict.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        self._added = 0
        self._warned = False
        self._file = SqliteFile(folder / "verdicts.sqlite", _SCHEMA)

    async def get(self, key: str) -> bool | None:
        return await self._run(self._get, key)

    async def put(self, key: str, correct: bool) -> None:
        await self._run(self._put, key, correct)

    async def aclose(self) -> None:
        await self._file.aclose()

    @contextlib.asynccontextmanager
    async def claim(self, key: str, timeout: float) -> AsyncIterator[None]:
        """Lock ``key`` between processes; the lock is released when the process ends.

        There are 4,096 locks; keys that share one wait for each other.
        """
        lock = AsyncFileLock(
            self._folder / "claims" / f"{key[:3]}.lock", timeout=timeout, is_singleton=False
        )
        try:
            await lock.acquire(poll_interval=_POLL_SECONDS)
        except (Timeout, OSError) as error:
            self._warn(error)
        try:
            yield
        finally:
            await lock.release()

    async def _run(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> T | None:
        try:
            return await self._file.run(function, *arguments, **keywords)
        except (sqlite3.Error, OSError) as error:
            self._warn(error)
            return None

    def _warn(self, error: Exception) -> None:
        level = logging.DEBUG if self._warned else logging.WARNING
        logger.log(level, "verdicts are not shared in %s: %s", self._folder, error)
        self._warned = True

    def _get(self, connection: sqlite3.Connection, key: str) -> bool | None:
        row = connection.execute("SELECT correct FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else bool(row[0])

    def _put(self, connection: sqlite3.Connection, key: str, correct: bool) -> None:
        connection.execute(
            "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", (key, int(correct), time.time())
        )
        if self._added % _TRIM_EVERY == 0:
            connection.execute(
                "DELETE FROM verdicts WHERE key IN"
                " (SELECT key FROM verdicts ORDER BY at DESC LIMIT -1 OFFSET ?)",
                (self._size,),
            )
        self._added += 1
