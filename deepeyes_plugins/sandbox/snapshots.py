"""Snapshot stores of evicted sessions: in memory, or in Redis for the servers that share it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar
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


class SnapshotStore(Protocol):
    """Store of sessions that have no process."""

    @property
    def shared(self) -> bool:
        """Whether other servers use it; sessions then are saved after their cells, too."""

    async def put(self, session_id: str, stored: StoredSession, *, fall_back: bool = False) -> None:
        """Store a session, replacing its earlier snapshot.

        Args:
            session_id: The session.
            stored: Its state.
            fall_back: Store it in the memory of this process if the store does not respond.

        Raises:
            StoreUnavailable: It could not be stored.
            TakenOver: Another server owns the session now.
        """

    async def claim(self, session_id: str) -> StoredSession | None:
        """Take ownership of a session and return it; None if there is no such session.

        Raises:
            StoreUnavailable: The store does not respond.
        """

    async def delete(self, session_id: str) -> None:
        """Delete a session; no error if there is none or the store does not respond."""

    async def put_image(self, digest: str, data: bytes) -> None:
        """Store an image for the sessions that use it, on whichever server they are restored.

        Raises:
            StoreUnavailable: It could not be stored.
        """

    async def image(self, digest: str) -> bytes | None:
        """Return an image, if it is in the store.

        Raises:
            StoreUnavailable: The store does not respond.
        """

    async def flush(self) -> None:
        """Write sessions from the memory of this process to the store, if it responds again."""

    async def close(self) -> None:
        """Close the connections."""


class MemoryStore:
    """Store in this process with a size limit; the oldest sessions are dropped first."""

    shared = False

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._sessions: OrderedDict[str, StoredSession] = OrderedDict()
        self._bytes = 0

    async def put(self, session_id: str, stored: StoredSession, *, fall_back: bool = False) -> None:
        """Store a session; see ``SnapshotStore``."""
        await self.delete(session_id)
        if len(stored.data) > self._max_bytes:
            raise StoreUnavailable(
                f"a snapshot of {len(stored.data)} bytes does not fit into snapshot_store_mb"
            )
        self._sessions[session_id] = stored
        self._bytes += len(stored.data)
        while self._bytes > self._max_bytes:
            dropped, oldest = self._sessions.popitem(last=False)
            self._bytes -= len(oldest.data)
            logger.warning("session %s was dropped: snapshot_store_mb is used up", dropped)

    async def claim(self, session_id: str) -> StoredSession | None:
        """Remove a session and return it."""
        stored = self._sessions.pop(session_id, None)
        if stored is not None:
            self._bytes -= len(stored.data)
        return stored

    @property
    def session_ids(self) -> list[str]:
        """IDs of the stored sessions, oldest first."""
        return list(self._sessions)

    async def delete(self, session_id: str) -> None:
        """Delete a session."""
        await self.claim(session_id)

    async def put_image(self, digest: str, data: bytes) -> None:
        """Do nothing: the server's own cache has the images of its sessions."""

    async def image(self, digest: str) -> bytes | None:
        """Return None: see ``put_image``."""
        return None

    async def flush(self) -> None:
        """Do nothing: there is no other store."""

    async def close(self) -> None:
        """Drop all sessions."""
        self._sessions.clear()
        self._bytes = 0


class RedisStore:
    """Store in Redis; in memory for sessions that are evicted while Redis does not respond."""

    shared = True

    def __init__(self, url: str, password: str | None, ttl: float, fallback: MemoryStore) -> None:
        """Initialize the store; it connects on first use.

        Args:
            url: URL such as ``redis://host:6379/0``.
            password: Password, if any.
            ttl: Seconds after which an unused session expires.
            fallback: Store of evicted sessions while Redis does not respond.
        """
        from redis.asyncio import Redis

        self._redis: Any = Redis.from_url(
            url,
            password=password,
            socket_timeout=_REDIS_SECONDS,
            socket_connect_timeout=_REDIS_SECONDS,
            health_check_interval=30,
        )
        self._owner = uuid4().hex
        self._ttl_ms = int(ttl * 1000)
        self._fallback = fallback
        self._put = self._redis.register_script(_PUT)
        self._claim = self._redis.register_script(_CLAIM)
        self._delete = self._redis.register_script(_DELETE)

    async def put(self, session_id: str, stored: StoredSession, *, fall_back: bool = False) -> None:
        """Store a session; see ``SnapshotStore``."""
        fields = {name: getattr(stored, name) for name in stored.__slots__}
        packed = msgpack.packb(fields, unicode_errors="surrogatepass")
        arguments = [self._owner, packed, self._ttl_ms]
        try:
            owned = await self._call(self._put(keys=[_session_key(session_id)], args=arguments))
        except StoreUnavailable as error:
            if not fall_back:
                raise
            logger.warning("session %s is stored in memory: %s", session_id, error)
            await self._fallback.put(session_id, stored)
            return
        await self._fallback.delete(session_id)
        if not owned:
            raise TakenOver(f"session {session_id} is on another server now")

    async def claim(self, session_id: str) -> StoredSession | None:
        """Return a session, from memory if it is there, since that state is newer."""
        stored = await self._fallback.claim(session_id)
        if stored is not None:
            return stored
        key = _session_key(session_id)
        packed = await self._call(self._claim(keys=[key], args=[self._owner]))
        if packed is None:
            return None
        return StoredSession(**msgpack.unpackb(packed, unicode_errors="surrogatepass"))

    async def delete(self, session_id: str) -> None:
        """Delete a session, unless another server owns it now."""
        await self._fallback.delete(session_id)
        try:
            await self._call(self._delete(keys=[_session_key(session_id)], args=[self._owner]))
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
        for session_id in self._fallback.session_ids:
            stored = await self._fallback.claim(session_id)
            if stored is not None:
                try:
                    await self.put(session_id, stored, fall_back=True)
                except TakenOver:
                    continue  # The state on the other server is newer.
                if session_id in self._fallback.session_ids:
                    return

    async def _call(self, command: Awaitable[T]) -> T:
        from redis.exceptions import RedisError

        try:
            return await asyncio.wait_for(command, 2 * _REDIS_SECONDS)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"Redis does not answer: {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


def _session_key(session_id: str) -> str:
    return f"{_PREFIX}session:{session_id}"


def make_store(settings: SandboxSettings) -> SnapshotStore:
    """Make the store that the settings specify."""
    memory = MemoryStore(settings.snapshot_store_mb << 20)
    if settings.redis_url is None:
        return memory
    password = os.environ.get(settings.redis_password_env) or None
    protect(password)
    return RedisStore(settings.redis_url, password, settings.idle_timeout, memory)
