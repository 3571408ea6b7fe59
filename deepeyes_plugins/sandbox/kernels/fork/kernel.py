"""Kernel of one forked session: requests, timeouts, and validation of untrusted replies."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final, TypeVar

from deepeyes_plugins.sandbox.contracts import ExecutionResult
from deepeyes_plugins.sandbox.kernels.contract import Snapshot, SnapshotFailed
from deepeyes_plugins.sandbox.kernels.fork.memory import memfd, seal
from deepeyes_plugins.sandbox.kernels.fork.process import Channel, Child, unique_bytes
from deepeyes_plugins.sandbox.kernels.outcomes import DIED, KILLED, MALFORMED, timed_out
from deepeyes_plugins.sandbox.kernels.output import (
    MAX_IMAGE_BYTES,
    PNG_SIGNATURE,
    OutputLimits,
    max_characters,
)

T = TypeVar("T")

_SNAPSHOT_SECONDS: Final = 10.0
_SNAPSHOT_OVERHEAD: Final = 8 << 20
_LARGE_BYTES: Final = 4 << 20
_MAX_ERROR_NAME: Final = 2000


class ForkKernel:
    """One forked session."""

    def __init__(self, child: Child, channel: Channel, grace: float, limits: OutputLimits) -> None:
        """Initialize the kernel of a running child process.

        Args:
            child: The forked process.
            channel: The connection to it.
            grace: Seconds between the interrupt at a timeout and the kill.
            limits: Limits of the output of one cell.
        """
        self._child = child
        self._channel = channel
        self._grace = grace
        self._busy = False
        self._names: list[str] = []
        self._limits = limits
        self._stop_reason = ""
        self._may_be_running = False

    @property
    def child(self) -> Child:
        """The child process."""
        return self._child

    @property
    def alive(self) -> bool:
        """Whether the process runs and its connection is intact."""
        return self._channel.open and self._child.handle >= 0

    @property
    def names(self) -> Sequence[str]:
        """Variables defined by the code; see ``Kernel``."""
        return self._names

    async def execute(self, code: str, timeout: float) -> ExecutionResult:
        """Run one cell; see ``Kernel``."""
        if not self.alive:
            return ExecutionResult("lost", stderr=self._stop_reason or DIED)
        started = time.perf_counter()
        request = {"code": code}
        fields, bulk, in_time, reacted = await self._ask(request, timeout, MAX_IMAGE_BYTES)
        duration = time.perf_counter() - started
        if fields is None:
            stderr = self._death_message(reacted, timeout)
            return ExecutionResult("killed", stderr=stderr, duration=duration)
        try:
            self._names = _string_list(fields.pop("names"))
            images = _split_images(bulk, fields.pop("images"))
            result = ExecutionResult(duration=duration, images=images, **fields)
            _validate(result, self._limits)
        except (TypeError, KeyError, ValueError, AttributeError):
            await self.close()
            return ExecutionResult("killed", stderr=MALFORMED, duration=duration)
        return result if in_time else timed_out(result, timeout)

    async def _ask(
        self,
        message: dict[str, Any],
        timeout: float,
        max_bulk_bytes: int = 0,
        memory: int | None = None,
    ) -> tuple[Any, bytes, bool, bool]:
        """Send a request, interrupt it at its timeout, and kill the process if it does not react.

        Args:
            message: The request.
            timeout: Seconds until the interrupt.
            max_bulk_bytes: Maximum size of the reply's bulk.
            memory: File descriptor to send with the request.

        Returns:
            The reply, or None if the process has ended; its bulk; whether it arrived before the
            timeout; whether the process replied or ended before it was killed.
        """
        self._busy = self._may_be_running = True
        descriptors = [] if memory is None else [memory]
        reply = self._channel.request(message, max_bulk_bytes, descriptors)
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
        fields, bulk = (reply.result() if done else None) or (None, b"")
        if fields is None:
            await self.close()
        return fields, bulk, in_time, bool(done)

    def _death_message(self, died: bool, timeout: float) -> str:
        if self._stop_reason:
            return self._stop_reason
        return DIED if died else KILLED.format(timeout)

    async def snapshot(self, max_bytes: int) -> Snapshot:
        """Save the variables; see ``Kernel``."""
        room = max_bytes + _SNAPSHOT_OVERHEAD
        with _lent_memory(room) as memory:
            seal(memory, fcntl.F_SEAL_GROW)
            request = {"save": max_bytes}
            fields, _, _, _ = await self._ask(request, _SNAPSHOT_SECONDS, memory=memory)
            try:
                if fields is None or "failure" in fields:
                    reason = "its process has ended" if fields is None else fields["failure"]
                    raise SnapshotFailed(f"the variables could not be saved: {reason}")
                names, lost = _string_list(fields["names"]), _string_dict(fields["lost"])
                size = min(fields["size"], room)
                data = await _in_thread_if_large(size, os.pread, memory, size, 0)
                if len(data) != size:
                    raise ValueError("not what was claimed")
            except (TypeError, KeyError, ValueError, AttributeError, OverflowError, OSError):
                await self.close()
                raise SnapshotFailed(MALFORMED) from None
        return Snapshot(data, names, lost)

    async def restore(self, data: bytes) -> dict[str, str]:
        """Restore saved variables; see ``Kernel``."""
        with _lent_memory(0) as memory:
            await _in_thread_if_large(len(data), _write_all, memory, data)
            seal(memory, fcntl.F_SEAL_GROW)
            fields, _, _, _ = await self._ask({"restore": True}, _SNAPSHOT_SECONDS, memory=memory)
        try:
            if fields is None or "failure" in fields:
                reason = "its process has ended" if fields is None else fields["failure"]
                raise SnapshotFailed(f"the variables could not be restored: {reason}")
            self._names = _string_list(fields["names"])
            return _string_dict(fields["lost"])
        except (TypeError, KeyError, ValueError, AttributeError):
            await self.close()
            raise SnapshotFailed(MALFORMED) from None

    def memory(self) -> int:
        """Return the unshared memory of this session; see ``Kernel``."""
        return unique_bytes(self._child.pid) if self.alive else 0

    def interrupt(self) -> None:
        """Interrupt the running cell or snapshot."""
        if self._busy:
            self._child.signal(signal.SIGINT)

    @property
    def may_be_running(self) -> bool:
        """Whether a cell, or a thread that a cell has started, may be running."""
        if self._may_be_running and not self._busy:
            self._may_be_running = self._child.threads > 1
        return self._may_be_running

    def stop(self, reason: str) -> None:
        """Kill a session that exceeds a quota; its current or next cell reports the reason."""
        self._stop_reason = f"{reason}, so its process was stopped. All variables are gone."
        self._child.signal(signal.SIGKILL)

    async def close(self) -> None:
        """Kill the process and remove its files."""
        self._channel.abort()
        await self._child.end()


@contextlib.contextmanager
def _lent_memory(size: int) -> Iterator[int]:
    """Create memory for an exchange with a session, and empty it afterwards.

    It does not count against the memory limit of the session, which could keep it open.
    """
    with memfd("snapshot", size) as memory:
        try:
            yield memory
        finally:
            os.ftruncate(memory, 0)


async def _in_thread_if_large(size: int, action: Callable[..., T], *arguments: Any) -> T:
    """Run a copy of ``size`` bytes, in a thread if it would block the event loop for long."""
    if size > _LARGE_BYTES:
        return await asyncio.to_thread(action, *arguments)
    return action(*arguments)


def _write_all(memory: int, data: bytes) -> None:
    with open(memory, "wb", closefd=False, buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
    os.lseek(memory, 0, os.SEEK_SET)


def _split_images(bulk: bytes, sizes: Any) -> list[bytes]:
    """Split the bulk of a reply into images."""
    if not isinstance(sizes, list) or not all(isinstance(s, int) and s >= 0 for s in sizes):
        raise ValueError("not a list of sizes")
    if sum(sizes) != len(bulk):
        raise ValueError("not the sizes of the images")
    ends = list(accumulate(sizes))
    return [bulk[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _validate(result: ExecutionResult, limits: OutputLimits) -> None:
    """Validate the reply of an untrusted child.

    Raises:
        ValueError: The reply violates the protocol or a limit.
    """
    texts = (
        (result.stdout, max_characters(limits.stdout_characters)),
        (result.stderr, max_characters(limits.stderr_characters)),
        (result.result, max_characters(limits.stdout_characters)),
        (result.error_name or "", _MAX_ERROR_NAME),
    )
    for text, most in texts:
        if not isinstance(text, str) or len(text) > most:
            raise ValueError("not text, or too long")
    if result.outcome not in ("ok", "error") or result.lost_names:
        raise ValueError("not an outcome of a child")
    if len(result.images) > limits.images:
        raise ValueError("too many images")
    if not all(image.startswith(PNG_SIGNATURE) for image in result.images):
        raise ValueError("not a PNG")


def _string_list(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("not a list of strings")
    return value


def _string_dict(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("not a dictionary")
    _string_list([*value, *value.values()])
    return value
