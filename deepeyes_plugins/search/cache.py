"""Store of cached responses and search counts, in a SQLite file or in Redis.

A store that fails logs a warning and costs further searches; queries are still answered.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deepeyes_plugins.extras import install_command
from deepeyes_plugins.remote.redaction import protect
from deepeyes_plugins.search.contracts import SearchNotConfiguredError
from deepeyes_plugins.search.settings import CacheSettings
from deepeyes_plugins.sqlite_file import SqliteFile

if TYPE_CHECKING:
    from redis.asyncio import Redis

logger = logging.getLogger(__name__)

_TRIMS_PER_SIZE = 16
"""The file is trimmed whenever a sixteenth of its maximum size has been added."""
_MEMORY_BYTES = 64 << 20
"""Maximum size of a store in memory, even if the settings allow more for a file."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, until REAL NOT NULL, size INTEGER NOT NULL,
    value BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS counts (
    key TEXT PRIMARY KEY, until REAL NOT NULL, value INTEGER NOT NULL
);
"""
_REDIS_SECONDS = 2.0
_PREFIX = "deepeyes:search:"

T = TypeVar("T")


class ResponseStore(ABC):
    """Key-value store and counters with expiry."""

    def __init__(self) -> None:
        self._warned = False
        self._local_counts: Counter[str] = Counter()

    async def get(self, key: str) -> bytes | None:
        """Return the value of ``key``; ``None`` if it is missing or expired."""
        return await self._or(None, self._get, key)

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        """Store ``value`` for ``seconds``."""
        if seconds > 0:
            await self._or(None, self._put, key, value, seconds)

    async def add(self, counter: str, number: int, seconds: float) -> int:
        """Add to a counter and return its new value; it expires after ``seconds``.

        If the store fails, the value is that of this process alone.
        """
        self._local_counts[counter] += number
        return await self._or(self._local_counts[counter], self._add, counter, number, seconds)

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connections; idempotent."""

    @abstractmethod
    async def _get(self, key: str) -> bytes | None: ...

    @abstractmethod
    async def _put(self, key: str, value: bytes, seconds: float) -> None: ...

    @abstractmethod
    async def _add(self, counter: str, number: int, seconds: float) -> int: ...

    @property
    @abstractmethod
    def _failures(self) -> tuple[type[Exception], ...]:
        """Exceptions that the store raises when it fails."""

    async def _or(self, default: T, call: Callable[..., Awaitable[T]], *arguments: object) -> T:
        try:
            return await call(*arguments)
        except self._failures as error:
            level = logging.DEBUG if self._warned else logging.WARNING
            logger.log(level, "search responses are not cached: %s", error)
            self._warned = True
            return default


class SqliteStore(ResponseStore):
    """Store in a SQLite file, which processes of one machine may share, or in memory."""

    _failures = (sqlite3.Error, OSError)

    def __init__(self, path: Path | None, size: int) -> None:
        """Initialise without opening the file.

        Args:
            path: The file; ``None`` for memory.
            size: Maximum size of the stored responses, in bytes.
        """
        super().__init__()
        self._file = SqliteFile(path, _SCHEMA)
        self._size = size
        self._added = 0

    async def aclose(self) -> None:
        """Close the file."""
        await self._file.aclose()

    async def _get(self, key: str) -> bytes | None:
        return await self._file.run(self._read, key)

    async def _put(self, key: str, value: bytes, seconds: float) -> None:
        await self._file.run(self._write, key, value, time.time() + seconds)

    async def _add(self, counter: str, number: int, seconds: float) -> int:
        return await self._file.run(self._count, counter, number, time.time() + seconds)

    def _read(self, connection: sqlite3.Connection, key: str) -> bytes | None:
        row = connection.execute(
            "SELECT value FROM answers WHERE key = ? AND until > ?", (key, time.time())
        )
        first = row.fetchone()
        return None if first is None else first[0]

    def _write(self, connection: sqlite3.Connection, key: str, value: bytes, until: float) -> None:
        if len(value) > self._size // _TRIMS_PER_SIZE:
            return
        connection.execute(
            "INSERT OR REPLACE INTO answers (key, until, size, value) VALUES (?, ?, ?, ?)",
            (key, until, len(value), value),
        )
        self._added += len(value)
        if self._added > self._size // _TRIMS_PER_SIZE:
            self._added = 0
            connection.execute("DELETE FROM answers WHERE until <= ?", (time.time(),))
            connection.execute("DELETE FROM counts WHERE until <= ?", (time.time(),))
            connection.execute(
                "DELETE FROM answers WHERE id IN (SELECT id FROM (SELECT id,"
                " SUM(size) OVER (ORDER BY id DESC) AS running FROM answers) WHERE running > ?)",
                (self._size - 2 * (self._size // _TRIMS_PER_SIZE),),
            )

    def _count(
        self, connection: sqlite3.Connection, counter: str, number: int, until: float
    ) -> int:
        row = connection.execute(
            "INSERT INTO counts (key, until, value) VALUES (?1, ?2, ?3) ON CONFLICT (key) DO UPDATE"
            " SET value = excluded.value + iif(until > ?4, value, 0), until = excluded.until"
            " RETURNING value",
            (counter, until, number, time.time()),
        )
        return int(row.fetchone()[0])


class RedisStore(ResponseStore):
    """Store in Redis, shared by machines. ``maxmemory`` of Redis limits its size."""

    def __init__(self, url: str, password: str | None) -> None:
        """Initialise without connecting.

        Raises:
            SearchNotConfiguredError: The library is missing, or the URL is invalid.
        """
        super().__init__()
        try:
            import redis
            from redis.asyncio import Redis
        except ModuleNotFoundError as error:
            raise SearchNotConfiguredError(
                f"search.cache.redis_url: {error}; {install_command('search')}"
            ) from error
        self._errors = (redis.RedisError, OSError)
        try:
            self._redis: Redis = Redis.from_url(
                url,
                password=password,
                socket_timeout=_REDIS_SECONDS,
                socket_connect_timeout=_REDIS_SECONDS,
            )
        except ValueError as error:
            raise SearchNotConfiguredError(f"search.cache.redis_url: {error}") from error

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        return self._errors

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _get(self, key: str) -> bytes | None:
        value = await self._redis.get(_PREFIX + key)
        return value.encode() if isinstance(value, str) else value

    async def _put(self, key: str, value: bytes, seconds: float) -> None:
        await self._redis.set(_PREFIX + key, value, px=max(1, int(seconds * 1000)))

    async def _add(self, counter: str, number: int, seconds: float) -> int:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.incrby(_PREFIX + counter, number)
            pipe.expire(_PREFIX + counter, max(1, int(seconds)))
            return int((await pipe.execute())[0])


def make_store(settings: CacheSettings, default: Path | None = None) -> ResponseStore:
    """Make the store of the settings.

    Args:
        settings: Section ``search.cache`` of agent.yaml.
        default: File if the settings name none; ``None`` for memory.

    Raises:
        SearchNotConfiguredError: Redis cannot be used.
    """
    if settings.redis_url is not None:
        password = os.environ.get(settings.redis_password_env)
        protect(password)
        return RedisStore(settings.redis_url, password)
    path = settings.path or default
    if path is None:
        return SqliteStore(None, min(settings.size_mb << 20, _MEMORY_BYTES))
    return SqliteStore(path.expanduser(), settings.size_mb << 20)


def user_cache_file() -> Path:
    """Return the service's default cache file, ``$XDG_CACHE_HOME/deepeyes/search.sqlite``."""
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "deepeyes" / "search.sqlite"
