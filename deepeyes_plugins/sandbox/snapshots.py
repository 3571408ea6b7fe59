"""Where sessions without a process wait: in memory, or in Redis for all servers that share it."""

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

from deepeyes_plugins.sandbox.contracts import SandboxError
from deepeyes_plugins.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_REDIS_SECONDS: Final = 5.0
_PREFIX: Final = "deepeyes:sandbox:"
# A session belongs to the server that wrote or read it last. One that was cut off for a while must
# not write over what has happened to its sessions elsewhere since.
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
    """The store does not answer now."""


class TakenOver(SandboxError):
    """Another server has restored this session and owns it now."""


@dataclass(frozen=True, slots=True)
class StoredSession:
    """All that brings a session back.

    Attributes:
        data: The kernel's snapshot.
        names: The variables in it.
        lost: What it does not hold, with the reasons.
        images: SHA-256 hashes of the session's images.
        cells: Number of cells that have run.
    """

    data: bytes
    names: list[str]
    lost: dict[str, str]
    images: list[str]
    cells: int


class SnapshotStore(Protocol):
    """Keeps sessions that have no process."""

    @property
    def shared(self) -> bool:
        """Whether other servers see it: then sessions are saved after their cells, too."""

    async def put(self, session_id: str, stored: StoredSession, *, or_here: bool = False) -> None:
        """Keep a session, in place of what was kept of it before.

        Args:
            session_id: The session.
            stored: What is left of it.
            or_here: Keep it in this process where the store does not answer.

        Raises:
            StoreUnavailable: It could not be kept.
            TakenOver: It is another server's now.
        """

    async def claim(self, session_id: str) -> StoredSession | None:
        """Return a session, if it is there, for this server to own.

        Raises:
            StoreUnavailable: The store does not answer, so nobody knows.
        """

    async def delete(self, session_id: str) -> None:
        """Forget a session; quiet if there is none or the store does not answer."""

    async def put_image(self, digest: str, data: bytes) -> None:
        """Keep an image for the sessions that have it, wherever they wake.

        Raises:
            StoreUnavailable: It could not be kept.
        """

    async def image(self, digest: str) -> bytes | None:
        """Return an image, if it is there.

        Raises:
            StoreUnavailable: The store does not answer.
        """

    async def catch_up(self) -> None:
        """Bring into the store what was kept in this process meanwhile, if it answers again."""

    async def close(self) -> None:
        """End the connections."""


class MemoryStore:
    """Keeps sessions in this process, up to a size; the longest unused go first."""

    shared = False

    def __init__(self, max_bytes: int) -> None:
        """Hold none."""
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, StoredSession] = OrderedDict()
        self._bytes = 0

    async def put(self, session_id: str, stored: StoredSession, *, or_here: bool = False) -> None:
        """Keep a session; see ``SnapshotStore``."""
        await self.delete(session_id)
        if len(stored.data) > self._max_bytes:
            raise StoreUnavailable(
                f"a snapshot of {len(stored.data)} bytes does not fit into snapshot_store_mb"
            )
        self._held[session_id] = stored
        self._bytes += len(stored.data)
        while self._bytes > self._max_bytes:
            dropped, oldest = self._held.popitem(last=False)
            self._bytes -= len(oldest.data)
            logger.warning("session %s was dropped: snapshot_store_mb is used up", dropped)

    async def claim(self, session_id: str) -> StoredSession | None:
        """Return a session and no longer keeps it."""
        stored = self._held.pop(session_id, None)
        if stored is not None:
            self._bytes -= len(stored.data)
        return stored

    @property
    def held(self) -> list[str]:
        """The sessions that are kept, those that wait longest first."""
        return list(self._held)

    async def delete(self, session_id: str) -> None:
        """Forget a session."""
        await self.claim(session_id)

    async def put_image(self, digest: str, data: bytes) -> None:
        """Do nothing: the server itself holds the images of its sessions."""

    async def image(self, digest: str) -> bytes | None:
        """Return None: see ``put_image``."""
        return None

    async def catch_up(self) -> None:
        """Do nothing: everything is kept here."""

    async def close(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._bytes = 0


class RedisStore:
    """Keeps sessions in Redis; in memory those that have to go while Redis does not answer."""

    shared = True

    def __init__(self, url: str, password: str | None, ttl: float, fallback: MemoryStore) -> None:
        """Connect on first use.

        Args:
            url: As ``redis://host:6379/0``.
            password: Its password, if it has one.
            ttl: Seconds that an unused session is kept.
            fallback: Where sessions go while Redis is away.
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

    async def put(self, session_id: str, stored: StoredSession, *, or_here: bool = False) -> None:
        """Keep a session; see ``SnapshotStore``."""
        fields = {name: getattr(stored, name) for name in stored.__slots__}
        packed = msgpack.packb(fields, unicode_errors="surrogatepass")
        arguments = [self._owner, packed, self._ttl_ms]
        try:
            ours = await self._call(self._put(keys=[_session_key(session_id)], args=arguments))
        except StoreUnavailable as error:
            if not or_here:
                raise
            logger.warning("session %s is kept in memory: %s", session_id, error)
            await self._fallback.put(session_id, stored)
            return
        await self._fallback.delete(session_id)
        if not ours:
            raise TakenOver(f"session {session_id} lives on another server now")

    async def claim(self, session_id: str) -> StoredSession | None:
        """Return a session; what was kept in memory meanwhile is newer."""
        stored = await self._fallback.claim(session_id)
        if stored is not None:
            return stored
        key = _session_key(session_id)
        packed = await self._call(self._claim(keys=[key], args=[self._owner]))
        if packed is None:
            return None
        return StoredSession(**msgpack.unpackb(packed, unicode_errors="surrogatepass"))

    async def delete(self, session_id: str) -> None:
        """Forget a session, unless it is another server's now."""
        await self._fallback.delete(session_id)
        try:
            await self._call(self._delete(keys=[_session_key(session_id)], args=[self._owner]))
        except StoreUnavailable as error:
            logger.warning("session %s stays in Redis until it expires: %s", session_id, error)

    async def put_image(self, digest: str, data: bytes) -> None:
        """Keep an image as long as sessions that have it are saved."""
        key = f"{_PREFIX}image:{digest}"
        if not await self._call(self._redis.pexpire(key, self._ttl_ms)):
            await self._call(self._redis.set(key, data, px=self._ttl_ms))

    async def image(self, digest: str) -> bytes | None:
        """Return an image, if it is there."""
        return await self._call(self._redis.get(f"{_PREFIX}image:{digest}"))

    async def catch_up(self) -> None:
        """Bring what was kept in memory to Redis; what fails waits for the next time."""
        for session_id in self._fallback.held:
            stored = await self._fallback.claim(session_id)
            if stored is not None:
                try:
                    await self.put(session_id, stored, or_here=True)
                except TakenOver:
                    continue  # What another server has is newer.
                if session_id in self._fallback.held:
                    return

    async def _call(self, asking: Awaitable[T]) -> T:
        from redis.exceptions import RedisError

        try:
            return await asyncio.wait_for(asking, 2 * _REDIS_SECONDS)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"Redis does not answer: {error}") from error

    async def close(self) -> None:
        """End the connections."""
        await self._redis.aclose()


def _session_key(session_id: str) -> str:
    return f"{_PREFIX}session:{session_id}"


def make_store(settings: SandboxSettings) -> SnapshotStore:
    """Make the store that the settings ask for."""
    memory = MemoryStore(settings.snapshot_store_mb << 20)
    if settings.redis_url is None:
        return memory
    password = os.environ.get(settings.redis_password_env) or None
    return RedisStore(settings.redis_url, password, settings.idle_timeout, memory)
