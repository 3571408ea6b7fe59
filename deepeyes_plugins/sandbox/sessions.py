"""Session manager: serial execution, eviction under memory pressure, restore from snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deepeyes_plugins.remote.single_flight import SingleFlight
from deepeyes_plugins.sandbox.contracts import ExecutionResult, SandboxError, SandboxUnavailable
from deepeyes_plugins.sandbox.image_cache import ImageCache
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

_MAINTENANCE_SECONDS = 1.0
_SAVE_DELAY_SECONDS = 0.2
_RETRY_SAVE_SECONDS = 5.0
_SHUTDOWN_SECONDS = 8.0
_MAX_EVICTIONS = 16
_MEMORY_SAMPLES = 4
_CLOSED = ExecutionResult("lost", stderr="The session was closed.")


class CellHasRun(SandboxError):
    """The requested cell ran already, on a server that failed before it responded."""


@dataclass(eq=False)
class Session:
    """One session: with a kernel, or evicted with a snapshot in the store."""

    id: str
    images: list[str]
    kernel: Kernel | None = None
    stored: StoredSession | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    cells: int = 0
    dirty: bool = False
    save_scheduled: bool = False
    saving: bool = False
    names: Sequence[str] = ()
    lost: dict[str, str] = field(default_factory=dict)
    memory: int = 0
    created: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)


class Sessions:
    """The sessions of a server, by ID."""

    def __init__(
        self,
        provider: KernelProvider,
        images: ImageCache,
        store: SnapshotStore,
        settings: SandboxSettings,
        metrics: Metrics,
    ) -> None:
        self._provider = provider
        self._images = images
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._sessions: dict[str, Session] = {}
        self._opening = 0
        self._room = asyncio.Lock()
        self._released = asyncio.Event()
        self._adopting: SingleFlight[str, Session] = SingleFlight()
        self._background: set[asyncio.Task[None]] = set()
        self._scheduled_saves: set[asyncio.Task[None]] = set()
        self._shutting_down = asyncio.Event()
        self._maintenance: asyncio.Task[None] | None = None
        self._samples: Iterator[Session] = iter(())

    def start(self) -> None:
        """Start the periodic maintenance."""
        self._maintenance = asyncio.ensure_future(self._maintain())

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    @property
    def live(self) -> int:
        """Number of sessions that have a process."""
        return sum(session.kernel is not None for session in self._sessions.values())

    @property
    def stored(self) -> int:
        """Number of evicted sessions."""
        return len(self._sessions) - self.live

    async def create(self, session_id: str, images: list[str], wait: float | None = None) -> None:
        """Create a session.

        Args:
            session_id: Its ID.
            images: SHA-256 hashes of its images.
            wait: Seconds to wait while all sessions are busy; at most the settings' room_timeout.

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
            # Serialized, so that concurrent calls do not evict the same session.
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
                self._remove(session, "died")
        deadline = time.monotonic() + seconds
        while self.live + self._opening >= limit:
            self._released.clear()
            if await self._evict_one("room", deadline):
                continue
            try:
                await asyncio.wait_for(self._released.wait(), deadline - time.monotonic())
            except TimeoutError:
                self._metrics.refused.inc()
                raise SandboxUnavailable(
                    f"all {limit} sessions are busy; close some, raise max_sessions or add a server"
                ) from None

    async def execute(
        self, session_id: str, code: str, timeout: float, cell: int | None = None
    ) -> ExecutionResult:
        """Run a cell after all earlier ones of the session.

        Args:
            session_id: The session.
            code: Source of the cell.
            timeout: Seconds after which the cell is interrupted.
            cell: Number of the session's cells whose results the client has, if it counts them.

        Raises:
            KeyError: There is no such session.
            CellHasRun: The session has run this cell already.
            SandboxUnavailable: The session could not be restored now.
        """
        session = self._sessions.get(session_id) or await self._adopt(session_id)
        session.waiting += 1
        if session.saving and session.kernel is not None:
            session.kernel.interrupt()  # The cell takes precedence over the snapshot.
        queued = time.perf_counter()
        try:
            async with session.lock:
                self._metrics.queue_seconds.observe(time.perf_counter() - queued)
                result = await self._run(session, code, timeout, cell)
        finally:
            session.waiting -= 1
            session.used = time.monotonic()
            self._released.set()
        self._metrics.cells.labels(result.outcome).inc()
        self._metrics.cell_seconds.observe(result.duration)
        if session.kernel is None or not session.kernel.alive:
            self._remove(session, result.outcome)
        elif self._store.shared:
            self._schedule_save(session, _SAVE_DELAY_SECONDS)
        return result

    async def _run(
        self, session: Session, code: str, timeout: float, cell: int | None
    ) -> ExecutionResult:
        if self._sessions.get(session.id) is not session:
            return _CLOSED
        if session.kernel is None:
            await self._restore(session)
            if self._sessions.get(session.id) is not session:
                return _CLOSED
        if session.kernel is None:
            return _lost_result(session)
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
        """Take over a session of another server, or one from before a restart of this one."""

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

    async def _restore(self, session: Session) -> None:
        """Restore an evicted session from its snapshot."""
        stored = session.stored
        if stored is None:
            try:
                stored = await self._store.claim(session.id)
            except StoreUnavailable as error:
                raise SandboxUnavailable(f"the session cannot be restored: {error}") from error
        if stored is None:
            return
        session.stored = stored  # For the next attempt, should this one fail.
        with self._metrics.restore_seconds.time():
            kernel, lost, result = await self._restore_kernel(stored)
        self._metrics.restores.labels(result).inc()
        if self._sessions.get(session.id) is not session:
            await kernel.close()  # The session was closed meanwhile.
            return
        session.kernel, session.stored, session.lost = kernel, None, lost
        session.cells, session.dirty = stored.cells, True
        logger.info("session %s restored (%s)", session.id, result)

    async def _restore_kernel(self, stored: StoredSession) -> tuple[Kernel, dict[str, str], str]:
        """Return a restored kernel, what is lost, and the outcome: whole, partial or failed."""
        lost = dict(stored.lost)
        kernel = await self._open(stored.images)
        self._opening += 1  # Counts against max_sessions during the restore, too.
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
        """Interrupt the running cell of a session, if any.

        Raises:
            KeyError: There is no such session.
        """
        session = self._sessions[session_id]
        if session.kernel is not None:
            session.kernel.interrupt()

    async def evict(self, session_id: str) -> None:
        """Evict a session until its next cell.

        Raises:
            KeyError: There is no such session.
            SandboxUnavailable: It cannot be evicted now.
        """
        session = self._sessions[session_id]
        async with session.lock:
            if session.kernel is not None:
                await self._evict(session, "asked")

    async def _evict_one(self, reason: str, deadline: float = math.inf) -> bool:
        """Evict the least recently used idle session; return whether there was one.

        Args:
            reason: Reason, for the metrics.
            deadline: Time of the monotonic clock after which no further session is tried, if
                some cannot be evicted.
        """
        if not self._provider.restorable:
            return False
        idle = filter(_idle, self._sessions.values())
        for session in sorted(idle, key=lambda session: session.used):
            if time.monotonic() > deadline:
                break
            if not _idle(session):  # It is in use by now; waiting for its cell would block others.
                continue
            async with session.lock:
                try:
                    await self._evict(session, reason)
                except SandboxUnavailable as error:
                    logger.debug("session %s was not evicted: %s", session.id, error)
                    session.used = time.monotonic()  # So that another one is tried next time.
                else:
                    return True
        return False

    async def _evict(self, session: Session, reason: str) -> None:
        assert session.kernel is not None
        if not self._provider.restorable:
            raise SandboxUnavailable("sessions of this kernel cannot be evicted")
        try:
            if session.dirty or not self._store.shared:
                await self._save(session, fall_back=True)
        except TakenOver:
            self._remove(session, "taken over", keep_stored=True)
            return
        except (SnapshotFailed, StoreUnavailable) as error:
            if session.kernel.alive:
                raise SandboxUnavailable(f"the session cannot be evicted: {error}") from error
            # Its next cell reports its variables as lost.
            logger.warning("session %s died while it was saved: %s", session.id, error)
        kernel, session.kernel = session.kernel, None
        self._metrics.evictions.labels(reason).inc()
        self._run_in_background(kernel.close())

    async def _save(self, session: Session, *, fall_back: bool = False) -> None:
        """Save a session's snapshot to the store; the caller holds its lock."""
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
        await self._store.put(session.id, stored, fall_back=fall_back)
        session.dirty = False

    def _schedule_save(self, session: Session, delay: float) -> None:
        """Schedule a save of a session for other servers, unless there is one already."""

        async def later() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._shutting_down.wait(), delay)
            session.save_scheduled = False
            await self._save_when_idle(session)

        if not session.save_scheduled:
            session.save_scheduled = True
            task = asyncio.create_task(later())
            self._scheduled_saves.add(task)
            task.add_done_callback(self._scheduled_saves.discard)

    async def _save_when_idle(self, session: Session) -> None:
        """Save a session if it is idle; otherwise its running cell schedules the next save."""
        if session.waiting:
            return
        async with session.lock:
            if session.kernel is None or session.waiting or not session.dirty:
                return
            try:
                await self._save(session)
                self._metrics.saves.labels("ok").inc()
            except TakenOver:
                self._remove(session, "taken over", keep_stored=True)
            except (SnapshotFailed, StoreUnavailable) as error:
                logger.debug("session %s could not be saved: %s", session.id, error)
                self._metrics.saves.labels("failed").inc()
                alive = session.kernel is not None and session.kernel.alive
                if alive and not self._shutting_down.is_set():
                    self._schedule_save(session, _RETRY_SAVE_SECONDS)

    def close(self, session_id: str) -> None:
        """End a session, even during a cell; its cleanup continues in the background."""
        session = self._sessions.get(session_id)
        if session is not None:
            self._remove(session, "asked")
        elif self._store.shared:
            self._run_in_background(self._store.delete(session_id))

    def _remove(self, session: Session, reason: str, *, keep_stored: bool = False) -> None:
        if self._sessions.get(session.id) is not session:
            return
        del self._sessions[session.id]
        self._released.set()
        self._images.unpin(session.images)
        self._metrics.closed.labels(reason).inc()
        if session.kernel is not None:
            self._run_in_background(session.kernel.close())
        if not keep_stored:
            self._run_in_background(self._store.delete(session.id))

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _maintain(self) -> None:
        """Periodically expire sessions, evict under memory pressure, and update metrics."""
        while True:
            await asyncio.sleep(_MAINTENANCE_SECONDS)
            try:
                self._expire()
                await self._relieve_memory()
                await self._store.flush()
                await self._update_metrics()
            except Exception:
                logger.exception("maintenance of the sessions failed; it is retried")

    def _expire(self) -> None:
        now = time.monotonic()
        for session in list(self._sessions.values()):
            if session.waiting:
                continue
            if now - session.used > self._settings.idle_timeout:
                logger.info("session %s ended at its idle timeout", session.id)
                self._remove(session, "idle")
            elif now - session.created > self._settings.max_lifetime:
                logger.info("session %s ended at its maximum lifetime", session.id)
                self._remove(session, "lifetime")

    async def _relieve_memory(self) -> None:
        wanted = self._settings.min_free_memory_mb << 20
        for _ in range(_MAX_EVICTIONS):
            if available_bytes() >= wanted or not await self._evict_one("memory"):
                return
            if self._background:  # The memory is free only when the process has ended.
                await asyncio.wait(self._background)

    async def _update_metrics(self) -> None:
        self._metrics.sessions.labels("live").set(self.live)
        self._metrics.sessions.labels("stored").set(self.stored)
        self._metrics.images.set(self._images.bytes)
        for _ in range(min(_MEMORY_SAMPLES, len(self._sessions))):
            session = next(self._samples, None)
            if session is None:
                self._samples = iter(list(self._sessions.values()))
            elif session.kernel is not None:
                session.memory = await asyncio.to_thread(session.kernel.memory)
        live = (session for session in self._sessions.values() if session.kernel is not None)
        self._metrics.memory.set(sum(session.memory for session in live))

    async def close_all(self) -> None:
        """End all sessions and wait for their cleanup.

        If other servers share the store, unsaved sessions are saved for them.
        """
        if self._maintenance is not None:
            self._maintenance.cancel()
            await asyncio.wait({self._maintenance})
        # Every unsaved session has a scheduled save, which runs now.
        self._shutting_down.set()
        if self._scheduled_saves:
            await asyncio.wait(self._scheduled_saves, timeout=_SHUTDOWN_SECONDS)
        for session in list(self._sessions.values()):
            self._remove(session, "shutdown", keep_stored=True)
        closing = [task for task in self._background if not task.done()]
        if closing:
            await asyncio.wait(closing, timeout=_SHUTDOWN_SECONDS)
        await self._store.close()


def _idle(session: Session) -> bool:
    return session.kernel is not None and not session.waiting and not session.lock.locked()


def _lost_result(session: Session) -> ExecutionResult:
    return ExecutionResult(
        "lost",
        stderr="The session was evicted and cannot be restored; its variables are lost.",
        lost_names=dict.fromkeys(
            session.names, "its snapshot was dropped, or it died while it was saved"
        ),
    )


def _restored_note(lost: dict[str, str]) -> str:
    names = "; ".join(f"{name} ({reason})" for name, reason in lost.items())
    return f"This session was restored. Not restored: {names}.\n"
