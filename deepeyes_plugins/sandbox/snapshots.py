"""Snapshot stores of evicted sessions: in memory, or in Redis for the servers that share it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import uuid4

import msgpack

from deepeyes_plugins.remote.redaction import protect
from deepeyes_plugins.sandbox.contracts import SandboxError
from deepeyes_plugins.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_REDIS_SECONDS: Final = 5.0
_PREFIX: Final = "deepeyes:sandbox:"
# A session is owned by the server that wrote or read it last. A server that reconnects after a
# network partition must not overwrite newer state of its former sessions.
_PUT = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'session', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""
_CLAIM = """
local session = redis.call('HGET', KEYS[1], 'session')
if session then redis.call('HSET', KEYS[1], 'owner', ARGV[1]) end
return session
"""
_DELETE = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class StoreUnavailable(SandboxError):
    """The store does not respond."""


class TakenOver(SandboxError):
    """Another server has restored this session and owns it now."""


@dataclass(frozen=True, slots=True)
class StoredSession:
    """Everything that is needed to restore a session.

    Attributes:
        data: The kernel's snapshot.
        names: The variables in it.
        lost: Variables and files that are not in it, each with the reason.
        images: SHA-256 hashes of the session's images.
        cells: Number of cells that have run.
    """

    data: bytes
    names: list[str]
    lost: dict[str, str]
    images: list[str]
    cells: int


class SnapshotStore:
    """Store of sessions that have no process, in the memory of this one.

    Its size is limited; the oldest sessions are dropped first.

    Attributes:
        shared: Whether other servers use it; sessions then are saved after their cells, too.
    """

    shared = False

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._sessions: OrderedDict[str, StoredSession] = OrderedDict()
        self._bytes = 0

    async def put(self, session_id: str, stored: StoredSession, *, fall_back: bool = False) -> None:
        """Store a session, replacing its earlier snapshot.

        Args:
            session_id: The session.
            stored: Its state.
            fall_back: Store it in the memory of this process if a shared store does not respond.

        Raises:
            StoreUnavailable: It could not be stored.
            TakenOver: Another server owns the session now.
        """
        self._take(session_id)
        if len(stored.data) > self._max_bytes:
            raise StoreUnavailable(
                f"a snapshot of {len(stored.data)} bytes does not fit into snapshot_store_mb"
            )
        self._sessions[session_id] = stored
        self._bytes += len(stored.data)
        while self._bytes > self._max_bytes:
            dropped = next(iter(self._sessions))
            self._take(dropped)
            logger.warning("session %s was dropped: snapshot_store_mb is used up", dropped)

    def _take(self, session_id: str) -> StoredSession | None:
        stored = self._sessions.pop(session_id, None)
        if stored is not None:
            self._bytes -= len(stored.data)
        return stored

    async def claim(self, session_id: str) -> StoredSession | None:
        """Take ownership of a session and return it; None if there is no such session.

        Raises:
            StoreUnavailable: The store does not respond.
        """
        return self._take(session_id)

    async def delete(self, session_id: str) -> None:
        """Delete a session; no error if there is none or the store does not respond."""
        self._take(session_id)

    async def put_image(self, digest: str, data: bytes) -> None:
        """Store an image for the sessions that use it, if other servers may restore them.

        Raises:
            StoreUnavailable: It could not be stored.
        """

    async def image(self, digest: str) -> bytes | None:
        """Return an image that was stored for other servers.

        Raises:
            StoreUnavailable: The store does not respond.
        """
        return None

    async def flush(self) -> None:
        """Write sessions from the memory of this process to a shared store that responds again."""

    async def close(self) -> None:
        """Close the connections."""


class RedisStore(SnapshotStore):
    """Store in Redis; in memory for sessions that are evicted while Redis does not respond."""

    shared = True

    def __init__(self, url: str, password: str | None, ttl: float, max_bytes: int) -> None:
        """Initialize the store; it connects on first use.

        Args:
            url: URL such as ``redis://host:6379/0``.
            password: Password, if any.
            ttl: Seconds after which an unused session expires.
            max_bytes: Memory for evicted sessions while Redis does not respond.
        """
        from redis.asyncio import Redis

        super().__init__(max_bytes)
        self._redis: Any = Redis.from_url(
            url,
            password=password,
            socket_timeout=_REDIS_SECONDS,
            socket_connect_timeout=_REDIS_SECONDS,
            health_check_interval=30,
        )
        self._owner = uuid4().hex
        self._ttl_ms = int(ttl * 1000)
        self._scripts = {
            code: self._redis.register_script(code) for code in (_PUT, _CLAIM, _DELETE)
        }

    async def put(self, session_id: str, stored: StoredSession, *, fall_back: bool = False) -> None:
        """Store a session; see ``SnapshotStore``."""
        fields = {name: getattr(stored, name) for name in stored.__slots__}
        packed = msgpack.packb(fields, unicode_errors="surrogatepass")
        try:
            owned = await self._run(_PUT, session_id, packed, self._ttl_ms)
        except StoreUnavailable as error:
            if not fall_back:
                raise
            logger.warning("session %s is stored in memory: %s", session_id, error)
            await super().put(session_id, stored)
            return
        self._take(session_id)
        if not owned:
            raise TakenOver(f"session {session_id} is on another server now")

    async def claim(self, session_id: str) -> StoredSession | None:
        """Return a session, from memory if it is there, since that state is newer."""
        stored = self._take(session_id)
        if stored is None and (packed := await self._run(_CLAIM, session_id)) is not None:
            stored = StoredSession(**msgpack.unpackb(packed, unicode_errors="surrogatepass"))
        return stored

    async def delete(self, session_id: str) -> None:
        """Delete a session, unless another server owns it now."""
        self._take(session_id)
        try:
            await self._run(_DELETE, session_id)
        except StoreUnavailable as error:
            logger.warning("session %s stays in Redis until it expires: %s", session_id, error)

    async def put_image(self, digest: str, data: bytes) -> None:
        """Store an image, or renew its expiry."""
        key = f"{_PREFIX}image:{digest}"
        if not await self._call(self._redis.pexpire(key, self._ttl_ms)):
            await self._call(self._redis.set(key, data, px=self._ttl_ms))

    async def image(self, digest: str) -> bytes | None:
        """Return an image, if it is in Redis."""
        return await self._call(self._redis.get(f"{_PREFIX}image:{digest}"))

    async def flush(self) -> None:
        """Write sessions from memory to Redis; those that fail stay in memory."""
        for session_id in list(self._sessions):
            stored = self._take(session_id)
            if stored is not None:
                try:
                    await self.put(session_id, stored, fall_back=True)
                except TakenOver:
                    continue  # The state on the other server is newer.
                if session_id in self._sessions:
                    return

    async def _run(self, script: str, session_id: str, *arguments: Any) -> Any:
        keys, values = [f"{_PREFIX}session:{session_id}"], [self._owner, *arguments]
        return await self._call(self._scripts[script](keys=keys, args=values))

    async def _call(self, command: Awaitable[T]) -> T:
        from redis.exceptions import RedisError

        try:
            return await asyncio.wait_for(command, 2 * _REDIS_SECONDS)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"Redis does not answer: {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


def make_store(settings: SandboxSettings) -> SnapshotStore:
    """Make the store that the settings specify."""
    max_bytes = settings.snapshot_store_mb << 20
    if settings.redis_url is None:
        return SnapshotStore(max_bytes)
    password = os.environ.get(settings.redis_password_env) or None
    protect(password)
    return RedisStore(settings.redis_url, password, settings.idle_timeout, max_bytes)
