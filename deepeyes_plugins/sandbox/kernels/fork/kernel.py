"""One forked session, as the server sees it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...contracts import ExecutionResult
from ..contract import Snapshot, SnapshotFailed
from .process import Channel, Child, unique_bytes

_SNAPSHOT_SECONDS = 30.0
_DIED = (
    "The Python process of this session ended while it ran this cell (os._exit, a crash in native "
    "code, or no memory left). All variables are gone."
)
_KILLED = (
    "TimeoutError: the cell did not finish within {:g} s and did not react to the interrupt, so "
    "its process was stopped. All variables are gone."
)
_INTERRUPTED = (
    "TimeoutError: the cell did not finish within {:g} s and was interrupted. Variables are kept."
)
_MALFORMED = "The session's process broke its own connection and was stopped."
_OVER_QUOTA = (
    "OSError: the files of this session grew over {} MiB, so its process was stopped. All "
    "variables are gone."
)


class ForkKernel:
    """One forked session."""

    def __init__(self, child: Child, channel: Channel, grace: float) -> None:
        """Takes charge of a child that waits for cells.

        Args:
            child: The forked process.
            channel: The connection to it.
            grace: Seconds between an interrupt at a timeout and the kill.
        """
        self._child = child
        self._channel = channel
        self._grace = grace
        self._busy = False
        self._names: list[str] = []
        self._over_quota_mb = 0

    @property
    def child(self) -> Child:
        """The process."""
        return self._child

    @property
    def alive(self) -> bool:
        """Whether the process is there and its connection intact."""
        return self._channel.open and self._child.handle >= 0

    @property
    def names(self) -> Sequence[str]:
        """The variables that the code had made when its last cell ended; see `Kernel`."""
        return self._names

    async def execute(self, code: str, timeout: float) -> ExecutionResult:
        """Runs one cell; see `Kernel`."""
        if not self.alive:
            return ExecutionResult("lost", stderr=_DIED)
        started = time.perf_counter()
        fields, in_time, reacted = await self._ask({"code": code}, timeout)
        duration = time.perf_counter() - started
        if fields is None:
            stderr = self._epitaph(reacted, timeout)
            return ExecutionResult("killed", stderr=stderr, duration=duration)
        try:
            self._names = _texts(fields.pop("names"))
            result = _checked(fields, duration)
        except (TypeError, KeyError, ValueError, AttributeError):
            await self.close()
            return ExecutionResult("killed", stderr=_MALFORMED, duration=duration)
        return result if in_time else _timed_out(result, timeout)

    async def _ask(self, message: dict[str, Any], timeout: float) -> tuple[Any, bool, bool]:
        """Sends a request, interrupts it at its timeout and kills what does not react.

        Returns:
            The reply, or None where the process is gone now; whether it came in time; whether
            anything came without force.
        """
        self._busy = True
        reply = self._channel.request(message)
        try:
            done, _ = await asyncio.wait({reply}, timeout=timeout)
            in_time = bool(done)
            if not in_time:
                self._child.signal(signal.SIGINT)
                done, _ = await asyncio.wait({reply}, timeout=self._grace)
        except asyncio.CancelledError:
            await self.close()
            raise
        finally:
            self._busy = False
        fields = reply.result() if done else None
        if fields is None:
            await self.close()
        return fields, in_time, bool(done)

    def _epitaph(self, died: bool, timeout: float) -> str:
        if self._over_quota_mb:
            return _OVER_QUOTA.format(self._over_quota_mb)
        return _DIED if died else _KILLED.format(timeout)

    async def snapshot(self, max_bytes: int) -> Snapshot:
        """Saves the variables; see `Kernel`."""
        fields, _, _ = await self._ask({"save": max_bytes}, _SNAPSHOT_SECONDS)
        try:
            if fields is None or "failure" in fields:
                reason = "its process has ended" if fields is None else fields["failure"]
                raise SnapshotFailed(f"the variables could not be saved: {reason}")
            if not isinstance(fields["data"], bytes):
                raise ValueError("not bytes")
            return Snapshot(fields["data"], _texts(fields["names"]), _reasons(fields["lost"]))
        except (TypeError, KeyError, ValueError, AttributeError):
            await self.close()
            raise SnapshotFailed(_MALFORMED) from None

    async def restore(self, data: bytes) -> dict[str, str]:
        """Takes over saved variables; see `Kernel`."""
        fields, _, _ = await self._ask({"restore": data}, _SNAPSHOT_SECONDS)
        try:
            if fields is None or "failure" in fields:
                reason = "its process has ended" if fields is None else fields["failure"]
                raise SnapshotFailed(f"the variables could not be restored: {reason}")
            self._names = _texts(fields["names"])
            return _reasons(fields["lost"])
        except (TypeError, KeyError, ValueError, AttributeError):
            await self.close()
            raise SnapshotFailed(_MALFORMED) from None

    def memory(self) -> int:
        """Bytes that only this session holds; see `Kernel`."""
        return unique_bytes(self._child.pid) if self.alive else 0

    def interrupt(self) -> None:
        """Interrupts the running cell or snapshot."""
        if self._busy:
            self._child.signal(signal.SIGINT)

    def kill_for_quota(self, quota_mb: int) -> None:
        """Stops a session whose files have grown too large; its running cell will say so."""
        self._over_quota_mb = quota_mb
        self._child.signal(signal.SIGKILL)

    async def close(self) -> None:
        """Kills the process and removes its files."""
        self._channel.abort()
        await self._child.end()


def _timed_out(result: ExecutionResult, timeout: float) -> ExecutionResult:
    separator = "" if not result.stderr or result.stderr.endswith("\n") else "\n"
    stderr = f"{result.stderr}{separator}{_INTERRUPTED.format(timeout)}"
    return replace(result, outcome="timeout", stderr=stderr, error_name="TimeoutError")


def _checked(fields: Any, duration: float) -> ExecutionResult:
    """Takes a child's reply for what it claims to be only after a look at every part of it."""
    result = ExecutionResult(duration=duration, **fields)
    texts = (result.stdout, result.stderr, result.result, result.error_name or "")
    if result.outcome not in ("ok", "error") or not all(isinstance(text, str) for text in texts):
        raise ValueError("not a result")
    if not isinstance(result.images, list) or not all(isinstance(i, bytes) for i in result.images):
        raise ValueError("not images")
    if result.lost_names:
        raise ValueError("not for a child to say")
    return result


def _texts(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("not a list of names")
    return names


def _reasons(lost: Any) -> dict[str, str]:
    if not isinstance(lost, dict):
        raise ValueError("not names with reasons")
    _texts([*lost, *lost.values()])
    return lost
