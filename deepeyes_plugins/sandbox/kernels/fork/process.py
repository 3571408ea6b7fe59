"""Server side of a forked child: process handle, connection and scratch folder."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from deepeyes_plugins.sandbox.kernels.fork import folders, wire

logger = logging.getLogger(__name__)

_FORK_SECONDS = 60.0
_EXIT_SECONDS = 30.0


class Channel(asyncio.Protocol):
    """Connection to a child: one request and its reply at a time."""

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._max_bulk_bytes = 0
        self._buffer = bytearray()
        self._reply: asyncio.Future[tuple[Any, bytes] | None] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self.transport = cast(asyncio.Transport, transport)

    @property
    def open(self) -> bool:
        """Whether the connection is open."""
        return self.transport is not None

    def request(
        self, message: Any, max_bulk_bytes: int, descriptors: Sequence[int] = ()
    ) -> asyncio.Future[tuple[Any, bytes] | None]:
        """Send a request; the future returns the reply and its bulk, or None if the child ends.

        Args:
            message: The request.
            max_bulk_bytes: Maximum size of the reply's bulk.
            descriptors: File descriptors to send with it.
        """
        self._max_bulk_bytes = max_bulk_bytes
        self._reply = asyncio.get_running_loop().create_future()
        if self.transport is None:
            self._reply.set_result(None)
            return self._reply
        frame = wire.pack(message)
        if descriptors:
            try:
                frame = frame[self._send_with(frame, descriptors) :]
            except OSError:
                self._break()  # The child violated the protocol, or has closed its end.
                return self._reply
        if frame:
            self.transport.write(frame)
        return self._reply

    def _send_with(self, frame: bytes, descriptors: Sequence[int]) -> int:
        assert self.transport is not None
        if self.transport.get_write_buffer_size():
            raise BlockingIOError
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as conn:
            return socket.send_fds(conn, [frame], descriptors)

    def data_received(self, data: bytes) -> None:
        """Assemble a reply; close the connection if the data is not a valid one."""
        self._buffer += data
        if self._reply is None or self._reply.done():
            self._break()
            return
        if len(self._buffer) < wire.HEADER.size:
            return
        size, bulk = wire.HEADER.unpack_from(self._buffer)
        end = wire.HEADER.size + size + bulk
        if size > self._max_message_bytes or bulk > self._max_bulk_bytes or len(self._buffer) > end:
            self._break()
        elif len(self._buffer) == end:
            with memoryview(self._buffer) as view:
                body = bytes(view[wire.HEADER.size : wire.HEADER.size + size])
                rest = bytes(view[wire.HEADER.size + size :])
            self._buffer = bytearray()
            try:
                self._reply.set_result((wire.unpack_untrusted(body), rest))
            except wire.WireError:
                self._break()

    def _break(self) -> None:
        # User code has found the socket and written to it: the connection cannot be trusted.
        self._buffer.clear()
        self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Resolve a pending request to None."""
        self.transport = None
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(None)


@dataclass
class Child:
    """Forked process, identified by a pidfd, which unlike its process ID is never reused.

    Attributes:
        conn: The server's end of the connection.
        pid: Process ID; it may be reused once the child has ended.
        handle: The pidfd; -1 after ``end``.
        scratch: Its writable folder, if it has one.
    """

    conn: socket.socket
    pid: int
    handle: int
    scratch: Path | None

    @property
    def disconnected(self) -> bool:
        """Whether a child without a pending request has closed its end of the connection."""
        try:
            return self.conn.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    @property
    def threads(self) -> int:
        """Number of threads; 0 after its end."""
        try:
            # The link count of the folder is the number of threads plus 2.
            return os.stat(f"/proc/{self.pid}/task").st_nlink - 2
        except OSError:
            return 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, number)

    async def end(self) -> None:
        """Kill the process, wait until it has ended, and remove its files."""
        if self.handle < 0:
            return
        self.signal(signal.SIGKILL)
        handle, self.handle = self.handle, -1
        try:
            await _readable(handle, _EXIT_SECONDS)
        except TimeoutError:
            logger.warning("a killed session has not ended after %g s", _EXIT_SECONDS)
        finally:
            os.close(handle)
            self.conn.close()
        await remove_folder(self.scratch)


async def wait_for_greeting(conn: socket.socket, scratch: Path | None) -> Child:
    """Wait for the greeting of a forked child.

    Args:
        conn: The server's end of its connection, non-blocking.
        scratch: Its scratch folder.

    Raises:
        WireError: It reported a failure or exited.
        OSError, TimeoutError: It sent no greeting.
    """
    await _readable(conn.fileno(), _FORK_SECONDS)
    greeting = conn.recv(1 << 16)
    if not greeting:
        raise wire.WireError("its process exited at once")
    message = wire.unpack(memoryview(greeting)[wire.HEADER.size :])
    if "failure" in message:
        raise wire.WireError(message["failure"])
    handle = os.pidfd_open(message["pid"])
    child = Child(conn, message["pid"], handle, scratch)
    # If its end is still open, the process is alive, so the handle refers to it.
    if child.disconnected:
        os.close(handle)
        raise wire.WireError("its process exited at once")
    return child


async def _readable(descriptor: int, timeout: float) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await asyncio.wait_for(event.wait(), timeout)
    finally:
        loop.remove_reader(descriptor)


async def remove_folder(folder: Path | None) -> None:
    """Remove a folder and its contents."""
    if folder is None:
        return
    try:
        folder.rmdir()  # Nearly always empty.
    except FileNotFoundError:
        return
    except OSError:
        await asyncio.to_thread(folders.remove, folder)


def unique_bytes(pid: int) -> int:
    """Return the unshared memory of a process; 0 after its end. Takes a millisecond or more."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
            private = [line.split()[1] for line in rollup if line.startswith("Private_")]
    except OSError:
        return 0
    return 1024 * sum(map(int, private))
