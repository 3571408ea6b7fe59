"""The sessions of a server: one cell at a time each, put away under pressure, brought back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from deepeyes_plugins.remote.single_flight import SingleFlight
from deepeyes_plugins.sandbox.contracts import ExecutionResult, SandboxError, SandboxUnavailable
from deepeyes_plugins.sandbox.image_cache import HeldImages
from deepeyes_plugins.sandbox.kernels.contract import Kernel, KernelProvider, SnapshotFailed
from deepeyes_plugins.sandbox.memory import available_bytes
from deepeyes_plugins.sandbox.metrics import Metrics
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.sandbox.snapshots import (
    SnapshotStore,
    StoredSession,
    StoreUnavailable,
    TakenOver,
)

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_SAVE_DELAY_SECONDS = 0.2
_RETRY_SAVE_SECONDS = 5.0
_SHUTDOWN_SECONDS = 8.0
_EVICTED_AT_ONCE = 16
_MEMORY_SAMPLES = 4
_CLOSED = ExecutionResult("lost", stderr="The session was closed.")


class CellHasRun(SandboxError):
    """The cell that is asked for has run already, on a server that failed before it answered."""


@dataclass(eq=False)
class Session:
    """One session; it has a kernel, or a snapshot in the store."""

    id: str
    images: list[str]
    kernel: Kernel | None = None
    stored: StoredSession | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    cells: int = 0
    dirty: bool = False
    save_planned: bool = False
    saving: bool = False
    names: Sequence[str] = ()
    lost: dict[str, str] = field(default_factory=dict)
    memory: int = 0
    created: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)


class Sessions:
    """The sessions of a server, by id."""

    def __init__(
        self,
        provider: KernelProvider,
        images: HeldImages,
        store: SnapshotStore,
        settings: SandboxSettings,
        metrics: Metrics,
    ) -> None:
        """Start with none."""
        self._provider = provider
        self._images = images
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._sessions: dict[str, Session] = {}
        self._opening = 0
        self._room = asyncio.Lock()
        self._paused = asyncio.Event()
        self._adopting: SingleFlight[str, Session] = SingleFlight()
        self._behind: set[asyncio.Task[None]] = set()
        self._planned: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._housekeeper: asyncio.Task[None] | None = None
        self._samples: Iterator[Session] = iter(())

    def start(self) -> None:
        """Begin to look after idle sessions and memory."""
        self._housekeeper = asyncio.ensure_future(self._keep_house())

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    @property
    def live(self) -> int:
        """Number of sessions that have a process."""
        return sum(session.kernel is not None for session in self._sessions.values())

    @property
    def stored(self) -> int:
        """Number of sessions that were put away."""
        return len(self._sessions) - self.live

    async def create(self, session_id: str, images: list[str], wait: float | None = None) -> None:
        """Open a session.

        Args:
            session_id: Its name.
            images: SHA-256 hashes of its images.
            wait: Seconds to wait where all sessions are busy; the settings' room_timeout at most.

        Raises:
            ImagesMissing: Images must be uploaded first.
            SandboxUnavailable: The server is full or cannot start a process.
        """
        with self._metrics.open_seconds.time():
            kernel = await self._open(images, wait)
        session = Session(session_id, images, kernel)
        self._sessions[session_id] = session
        self._images.pin(images)
        self._metrics.opened.inc()

    async def _open(self, images: list[str], wait: float | None = None) -> Kernel:
        seconds = self._settings.room_timeout
        async with self._room:
            # One after the other, or each would take the same session for the one to go.
            await self._make_room(seconds if wait is None else min(wait, seconds))
            self._opening += 1
        try:
            return await self._images.open(images)
        finally:
            self._opening -= 1

    async def _make_room(self, seconds: float) -> None:
        limit = self._settings.max_sessions
        if self.live + self._opening < limit:
            return
        for session in list(self._sessions.values()):
            if session.kernel is not None and not session.kernel.alive and not session.waiting:
                self._forget(session, "died")
        deadline = time.monotonic() + seconds
        while self.live + self._opening >= limit:
            self._paused.clear()
            if await self._evict_one("room", deadline):
                continue
            try:
                await asyncio.wait_for(self._paused.wait(), deadline - time.monotonic())
            except TimeoutError:
                self._metrics.refused.inc()
                raise SandboxUnavailable(
                    f"all {limit} sessions are busy; close some, raise max_sessions or add a server"
                ) from None

    async def execute(
        self, session_id: str, code: str, timeout: float, cell: int | None = None
    ) -> ExecutionResult:
        """Run a cell after those that the session was given before.

        Args:
            session_id: The session.
            code: Source of the cell.
            timeout: Seconds after which the cell is interrupted.
            cell: Number of the session's cells whose results the client has, if it counts them.

        Raises:
            KeyError: There is no such session.
            CellHasRun: The session has run this cell already.
            SandboxUnavailable: It could not be brought back now.
        """
        session = self._sessions.get(session_id) or await self._adopt(session_id)
        session.waiting += 1
        if session.saving and session.kernel is not None:
            session.kernel.interrupt()  # The cell goes first.
        asked = time.perf_counter()
        try:
            async with session.lock:
                self._metrics.queue_seconds.observe(time.perf_counter() - asked)
                result = await self._run(session, code, timeout, cell)
        finally:
            session.waiting -= 1
            session.used = time.monotonic()
            self._paused.set()
        self._metrics.cells.labels(result.outcome).inc()
        self._metrics.cell_seconds.observe(result.duration)
        if session.kernel is None or not session.kernel.alive:
            self._forget(session, result.outcome)
        elif self._store.shared:
            self._plan_save(session, _SAVE_DELAY_SECONDS)
        return result

    async def _run(
        self, session: Session, code: str, timeout: float, cell: int | None
    ) -> ExecutionResult:
        if self._sessions.get(session.id) is not session:
            return _CLOSED
        if session.kernel is None:
            await self._wake(session)
            if self._sessions.get(session.id) is not session:
                return _CLOSED
        if session.kernel is None:
            return _gone(session)
        if cell is not None and session.cells > cell:
            raise CellHasRun(
                "this cell has run already; its output was lost with the server that ran it"
            )
        if cell is not None and session.cells < cell:
            missing = cell - session.cells
            session.lost[f"(the last {missing} cells)"] = "the server failed before it saved them"
            session.cells = cell
        result = await session.kernel.execute(code, min(timeout, self._settings.cell_timeout))
        session.cells += 1
        session.dirty = True
        if result.outcome in ("killed", "lost"):
            session.lost |= dict.fromkeys(session.names, "its process has ended")
        session.names = list(session.kernel.names)
        lost, session.lost = session.lost, {}
        if not lost:
            return result
        if result.outcome in ("killed", "lost"):
            return replace(result, lost_names=lost)
        return replace(result, lost_names=lost, stderr=_restored_note(lost) + result.stderr)

    async def _adopt(self, session_id: str) -> Session:
        """Take over a session of another server, or one from before a restart."""

        async def adopt() -> Session:
            try:
                stored = await self._store.claim(session_id)
            except StoreUnavailable as error:
                raise SandboxUnavailable(f"the session cannot be looked up: {error}") from error
            if stored is None:
                raise KeyError(session_id)
            session = Session(session_id, stored.images, None, stored, cells=stored.cells)
            self._sessions[session_id] = session
            self._images.pin(session.images)
            return session

        if not self._store.shared:
            raise KeyError(session_id)
        return await self._adopting.run(session_id, adopt)

    async def _wake(self, session: Session) -> None:
        """Give a session that was put away a process again, with what was saved of it."""
        stored = session.stored
        if stored is None:
            try:
                stored = await self._store.claim(session.id)
            except StoreUnavailable as error:
                raise SandboxUnavailable(f"the session cannot be restored: {error}") from error
        if stored is None:
            return
        session.stored = stored  # Kept until it is back, should anything fail on the way.
        with self._metrics.restore_seconds.time():
            kernel, lost, result = await self._restored(stored)
        self._metrics.restores.labels(result).inc()
        if self._sessions.get(session.id) is not session:
            await kernel.close()  # Closed meanwhile: nobody would ever end it.
            return
        session.kernel, session.stored, session.lost = kernel, None, lost
        session.cells, session.dirty = stored.cells, True
        logger.info("session %s is back (%s)", session.id, result)

    async def _restored(self, stored: StoredSession) -> tuple[Kernel, dict[str, str], str]:
        """A kernel with what was saved, what it lacks of that, and how much of it came back."""
        lost = dict(stored.lost)
        kernel = await self._open(stored.images)
        self._opening += 1  # It counts already.
        try:
            lost |= await kernel.restore(stored.data)
            return kernel, lost, "partial" if lost else "whole"
        except SnapshotFailed as error:
            lost |= dict.fromkeys(stored.names, str(error))
            if kernel.alive:
                return kernel, lost, "failed"
            await kernel.close()
        except BaseException:
            await kernel.close()
            raise
        finally:
            self._opening -= 1
        return await self._open(stored.images), lost, "failed"

    def interrupt(self, session_id: str) -> None:
        """Interrupt the running cell of a session, if there is one.

        Raises:
            KeyError: There is no such session.
        """
        session = self._sessions[session_id]
        if session.kernel is not None:
            session.kernel.interrupt()

    async def evict(self, session_id: str) -> None:
        """Put a session away until its next cell.

        Raises:
            KeyError: There is no such session.
            SandboxUnavailable: It cannot be put away now.
        """
        session = self._sessions[session_id]
        async with session.lock:
            if session.kernel is not None:
                await self._put_away(session, "asked")

    async def _evict_one(self, reason: str, deadline: float = math.inf) -> bool:
        """Put the session away that was not used for longest; returns whether there was one.

        Args:
            reason: Why, for the metrics.
            deadline: When to try no other one, should some resist; of the monotonic clock.
        """
        if not self._provider.restorable:
            return False
        for session in sorted(filter(_idle, self._sessions.values()), key=lambda one: one.used):
            if time.monotonic() > deadline:
                break
            if not _idle(session):  # Any more: waiting for its cell would hold up all others.
                continue
            async with session.lock:
                try:
                    await self._put_away(session, reason)
                except SandboxUnavailable as error:
                    logger.debug("session %s stays: %s", session.id, error)
                    session.used = time.monotonic()  # The next time another one is tried first.
                else:
                    return True
        return False

    async def _put_away(self, session: Session, reason: str) -> None:
        assert session.kernel is not None
        if not self._provider.restorable:
            raise SandboxUnavailable("sessions of this kernel cannot be put away")
        try:
            if session.dirty or not self._store.shared:
                await self._save(session, or_here=True)
        except TakenOver:
            self._forget(session, "taken over", keep_stored=True)
            return
        except (SnapshotFailed, StoreUnavailable) as error:
            if session.kernel.alive:
                raise SandboxUnavailable(f"the session cannot be put away: {error}") from error
            # Nothing is left of it but the names that its next cell will be told.
            logger.warning("session %s died while it was saved: %s", session.id, error)
        kernel, session.kernel = session.kernel, None
        self._metrics.evictions.labels(reason).inc()
        self._go(kernel.close())

    async def _save(self, session: Session, *, or_here: bool = False) -> None:
        """Bring a session's state into the store; the caller holds its lock."""
        assert session.kernel is not None
        session.saving = True
        try:
            snapshot = await session.kernel.snapshot(self._settings.snapshot_mb << 20)
        finally:
            session.saving = False
        stored = StoredSession(
            data=snapshot.data,
            names=snapshot.names,
            lost=snapshot.lost | session.lost,
            images=session.images,
            cells=session.cells,
        )
        if self._store.shared:
            with contextlib.suppress(StoreUnavailable):
                await self._images.share(session.images)
        await self._store.put(session.id, stored, or_here=or_here)
        session.dirty = False

    def _plan_save(self, session: Session, delay: float) -> None:
        """Save a session for other servers a little later, unless that is planned already."""

        async def later() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), delay)
            session.save_planned = False
            await self._save_for_others(session)

        if not session.save_planned:
            session.save_planned = True
            task = asyncio.create_task(later())
            self._planned.add(task)
            task.add_done_callback(self._planned.discard)

    async def _save_for_others(self, session: Session) -> None:
        """Save a session that pauses; a cell that comes goes first, and is saved afterwards."""
        if session.waiting:
            return
        async with session.lock:
            if session.kernel is None or session.waiting or not session.dirty:
                return
            try:
                await self._save(session)
                self._metrics.saves.labels("ok").inc()
            except TakenOver:
                self._forget(session, "taken over", keep_stored=True)
            except (SnapshotFailed, StoreUnavailable) as error:
                logger.debug("session %s is not saved now: %s", session.id, error)
                self._metrics.saves.labels("failed").inc()
                alive = session.kernel is not None and session.kernel.alive
                if alive and not self._ending.is_set():
                    self._plan_save(session, _RETRY_SAVE_SECONDS)

    def close(self, session_id: str) -> None:
        """End a session, also in the middle of a cell; what remains to tidy goes on behind."""
        session = self._sessions.get(session_id)
        if session is not None:
            self._forget(session, "asked")
        elif self._store.shared:
            self._go(self._store.delete(session_id))

    def _forget(self, session: Session, reason: str, *, keep_stored: bool = False) -> None:
        if self._sessions.get(session.id) is not session:
            return
        del self._sessions[session.id]
        self._paused.set()
        self._images.unpin(session.images)
        self._metrics.closed.labels(reason).inc()
        if session.kernel is not None:
            self._go(session.kernel.close())
        if not keep_stored:
            self._go(self._store.delete(session.id))

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    async def _keep_house(self) -> None:
        """Once a second: ends what was idle for too long, makes room in memory, counts."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                self._expire()
                await self._relieve_memory()
                await self._store.catch_up()
                await self._count()
            except Exception:
                logger.exception("looking after the sessions failed; it is tried again")

    def _expire(self) -> None:
        now = time.monotonic()
        for session in list(self._sessions.values()):
            if session.waiting:
                continue
            if now - session.used > self._settings.idle_timeout:
                logger.info("session %s was idle for too long", session.id)
                self._forget(session, "idle")
            elif now - session.created > self._settings.max_lifetime:
                logger.info("session %s has reached its longest life", session.id)
                self._forget(session, "lifetime")

    async def _relieve_memory(self) -> None:
        wanted = self._settings.min_free_memory_mb << 20
        for _ in range(_EVICTED_AT_ONCE):
            if available_bytes() >= wanted or not await self._evict_one("memory"):
                return
            if self._behind:  # The memory is free once the process has ended.
                await asyncio.wait(self._behind)

    async def _count(self) -> None:
        self._metrics.sessions.labels("live").set(self.live)
        self._metrics.sessions.labels("stored").set(self.stored)
        self._metrics.images.set(self._images.bytes)
        for _ in range(min(_MEMORY_SAMPLES, len(self._sessions))):
            session = next(self._samples, None)
            if session is None:
                self._samples = iter(list(self._sessions.values()))
            elif session.kernel is not None:
                session.memory = await asyncio.to_thread(session.kernel.memory)
        live = (one for one in self._sessions.values() if one.kernel is not None)
        self._metrics.memory.set(sum(session.memory for session in live))

    async def close_all(self) -> None:
        """End every session and waits until nothing is left of them.

        Where other servers share the store, what was not saved yet is saved for them.
        """
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.wait({self._housekeeper})
        # Every session that is not saved yet has a save planned: it comes now.
        self._ending.set()
        if self._planned:
            await asyncio.wait(self._planned, timeout=_SHUTDOWN_SECONDS)
        for session in list(self._sessions.values()):
            self._forget(session, "shutdown", keep_stored=True)
        closing = [task for task in self._behind if not task.done()]
        if closing:
            await asyncio.wait(closing, timeout=_SHUTDOWN_SECONDS)
        await self._store.close()


def new_id(worker: int) -> str:
    """A session id that nobody can guess, which tells the worker that has the session."""
    return f"{worker}-{uuid4().hex}"


def _idle(session: Session) -> bool:
    return session.kernel is not None and not session.waiting and not session.lock.locked()


def _gone(session: Session) -> ExecutionResult:
    return ExecutionResult(
        "lost",
        stderr="The session was put away and cannot be brought back; its variables are lost.",
        lost_names=dict.fromkeys(
            session.names, "its snapshot was dropped, or it died while it was saved"
        ),
    )


def _restored_note(lost: dict[str, str]) -> str:
    names = "; ".join(f"{name} ({reason})" for name, reason in lost.items())
    return f"This session was restored. Not restored: {names}.\n"
