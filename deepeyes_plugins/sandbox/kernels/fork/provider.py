"""Kernels that are forked from a warm zygote: the server's side of `zygote`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import msgpack

from ...contracts import ExecutionResult, SandboxUnavailable
from ...settings import SandboxSettings
from ..contract import ImageRejected, ImagesMissing, Snapshot, SnapshotFailed
from ..outcomes import DIED as _DIED
from ..outcomes import KILLED as _KILLED
from ..outcomes import MALFORMED as _MALFORMED
from ..outcomes import timed_out as _timed_out
from . import isolation, wire

logger = logging.getLogger(__name__)

_FORK_SECONDS = 60.0
_DECODE_SECONDS = 60.0
_EXIT_SECONDS = 30.0
# The zygote forks one after the other. The kernel counts descriptors on their way against a limit
# and the socket buffers them, so the queue is kept here.
_FORKS_AT_ONCE = 64
_SCRATCH_PREFIX = "deepeyes-sandbox-"


class _Channel(asyncio.Protocol):
    """Sends requests to a child and hands out its replies, one at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._reply: asyncio.Future[Any] | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    @property
    def open(self) -> bool:
        return self.transport is not None

    def request(self, message: Any) -> asyncio.Future[Any]:
        """Sends a message; the future gives the reply, or None when the child has gone."""
        self._reply = asyncio.get_running_loop().create_future()
        if self.transport is None:
            self._reply.set_result(None)
        else:
            self.transport.write(wire.pack(message))
        return self._reply

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) < wire.HEADER.size:
            return
        (size,) = wire.HEADER.unpack_from(self._buffer)
        if size > wire.MAX_FRAME_BYTES or self._reply is None or self._reply.done():
            self._break()
        elif len(self._buffer) >= wire.HEADER.size + size:
            body = bytes(memoryview(self._buffer)[wire.HEADER.size : wire.HEADER.size + size])
            del self._buffer[: wire.HEADER.size + size]
            try:
                self._reply.set_result(wire.unpack(body))
            except wire.WireError:
                self._break()

    def _break(self) -> None:
        # User code found the socket and wrote to it: whatever comes from there now is worthless.
        self._buffer.clear()
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(None)


@dataclass
class _Child:
    """A forked process, known by a handle that no other process can come to have."""

    conn: socket.socket
    handle: int
    scratch: Path | None

    def signal(self, number: signal.Signals) -> None:
        if self.handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, number)

    async def end(self) -> None:
        """Kills the process, waits until it is gone and removes its files."""
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
        await _remove(self.scratch)


class ForkKernel:
    """One forked session."""

    def __init__(self, child: _Child, channel: _Channel, grace: float) -> None:
        """Takes charge of a child that waits for cells.

        Args:
            child: The forked process.
            channel: The connection to it.
            grace: Seconds between an interrupt at a timeout and the kill.
        """
        self._child = child
        self._channel = channel
        self._grace = grace
        self._running = False

    @property
    def alive(self) -> bool:
        """Whether the process is there and its connection intact."""
        return self._channel.open and self._child.handle >= 0

    async def execute(self, code: str, timeout: float) -> ExecutionResult:
        """Runs one cell; see `Kernel`."""
        if not self.alive:
            return ExecutionResult("lost", stderr=_DIED)
        started = time.perf_counter()
        self._running = True
        reply = self._channel.request({"code": code})
        try:
            done, _ = await asyncio.wait({reply}, timeout=timeout)
            in_time = bool(done)
            if not in_time:
                self._child.signal(signal.SIGINT)
                done, _ = await asyncio.wait({reply}, timeout=self._grace)
                if not done:
                    await self.close()
        except asyncio.CancelledError:
            await self.close()
            raise
        finally:
            self._running = False
        duration = time.perf_counter() - started
        fields = reply.result() if done else None
        if fields is None:
            await self.close()
            stderr = _DIED if in_time or done else _KILLED.format(timeout)
            return ExecutionResult("killed", stderr=stderr, duration=duration)
        try:
            result = _checked(fields, duration)
        except (TypeError, KeyError, ValueError):
            await self.close()
            return ExecutionResult("killed", stderr=_MALFORMED, duration=duration)
        return result if in_time else _timed_out(result, timeout)

    @property
    def names(self) -> Sequence[str]:
        """The variables that the code had made; see `Kernel`."""
        return ()

    async def snapshot(self, max_bytes: int) -> Snapshot:
        """Saves the variables; see `Kernel`."""
        raise SnapshotFailed("not yet")

    async def restore(self, data: bytes) -> dict[str, str]:
        """Takes over saved variables; see `Kernel`."""
        raise SnapshotFailed("not yet")

    def memory(self) -> int:
        """Bytes that only this session holds; see `Kernel`."""
        return 0

    def interrupt(self) -> None:
        """Interrupts the running cell."""
        if self._running:
            self._child.signal(signal.SIGINT)

    async def close(self) -> None:
        """Kills the process and removes its files."""
        if self._channel.transport is not None:
            self._channel.transport.abort()
        await self._child.end()


def _checked(fields: Any, duration: float) -> ExecutionResult:
    """Takes a child's reply for what it claims to be only after a look at every part of it."""
    result = ExecutionResult(duration=duration, **fields)
    texts = (result.stdout, result.stderr, result.result, result.error_name or "")
    if result.outcome not in ("ok", "error") or not all(isinstance(text, str) for text in texts):
        raise ValueError("not a result")
    if not isinstance(result.images, list) or not all(isinstance(i, bytes) for i in result.images):
        raise ValueError("not images")
    return result


@dataclass(frozen=True)
class _Picture:
    """A decoded image in sealed memory."""

    described: dict[str, Any]
    memory: int
    size: int


class ForkProvider:
    """Keeps a zygote running, forks kernels from it and shares decoded images between them."""

    def __init__(self, settings: SandboxSettings) -> None:
        """Prepares; `start` starts."""
        self._settings = settings
        self._layers = isolation.probe()
        self._base: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready: asyncio.Future[None] | None = None
        self._closed = False
        self._pictures: OrderedDict[str, _Picture] = OrderedDict()
        self._decoding: dict[str, asyncio.Future[None]] = {}
        self._decoder: _Child | None = None
        self._decoder_lock = asyncio.Lock()
        self._fork_slots = asyncio.Semaphore(_FORKS_AT_ONCE)

    restorable = False

    def notes(self) -> dict[str, str]:
        """Nothing yet; see `KernelProvider`."""
        return {}

    def isolation(self) -> dict[str, str]:
        """Isolation layer to "active" or to the reason why it is missing."""
        return dict(self._layers)

    async def start(self) -> None:
        """Starts a zygote and runs a first session; see `KernelProvider`."""
        missing = isolation.missing(self._layers)
        if missing and not self._settings.allow_unisolated:
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in missing.items())
            raise SandboxUnavailable(
                f"this machine cannot isolate untrusted code ({reasons}). Run the sandbox on a "
                "kernel that can (Linux 5.13 or newer with Landlock and seccomp), or set "
                "allow_unisolated to run model-written code with all rights of this user"
            )
        for layer, reason in missing.items():
            logger.warning("sessions run without isolation layer %s: %s", layer, reason)
        self._spawn()
        kernel = await self.open([])
        try:
            await self._self_check(kernel)
        finally:
            await kernel.close()

    async def _self_check(self, kernel: ForkKernel) -> None:
        """Proves in a real session that the jail holds, rather than that it was asked for."""
        assert self._base is not None
        canary = self._base / "canary"
        canary.write_text("readable only outside", encoding="ascii")
        code = (
            "import socket\n"
            f"for attempt in (lambda: open({str(canary)!r}), socket.socket):\n"
            "    try:\n"
            "        attempt()\n"
            "        print('allowed')\n"
            "    except PermissionError:\n"
            "        print('refused')\n"
        )
        result = await kernel.execute(code, 30.0)
        if result.outcome != "ok":
            raise SandboxUnavailable(f"the first session does not work: {result.stderr}")
        if "allowed" in result.stdout and not self._settings.allow_unisolated:
            raise SandboxUnavailable(
                "a session could read a file or open a socket that its isolation must refuse"
            )

    def _spawn(self) -> None:
        """Starts a zygote; kernels wait for it."""
        loop = asyncio.get_running_loop()
        base = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX)).resolve()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = self._settings
        readable = [*isolation.interpreter_paths(), *map(os.path.realpath, settings.readable_paths)]
        plan = {
            "base": str(base),
            "warm_modules": list(settings.warm_modules),
            "layers": [layer for layer, state in self._layers.items() if state == "active"],
            "readable": readable,
            "memory_bytes": settings.memory_mb << 20,
            "file_bytes": settings.file_mb << 20,
            "limits": {
                "stdout_characters": settings.max_stdout_characters,
                "stderr_characters": settings.max_stderr_characters,
                "images": settings.max_images,
                "image_pixels": settings.max_image_pixels,
            },
        }
        self._base, self._control = base, ours
        self._ready = loop.create_future()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.zygote", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_zygote_environment(base),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        ours.setblocking(False)
        ours.send(msgpack.packb(plan))
        loop.add_reader(ours, self._on_control)

    def _on_control(self) -> None:
        """The zygote said something, or died."""
        assert self._control is not None and self._ready is not None
        try:
            packet = self._control.recv(1 << 16)
        except OSError:
            packet = b""
        message = msgpack.unpackb(packet) if packet else {}
        if "ready" in message:
            self._ready.set_result(None)
            return
        reason = message.get("failure", "it ended")
        was_ready = self._ready.done()
        logger.error("the sandbox's zygote failed: %s", reason)
        self._reap()
        if was_ready and not self._closed:
            # Its sessions died with it. One that never got ready would only fail again.
            self._spawn()
        elif not was_ready:
            self._ready.set_exception(
                SandboxUnavailable(f"the sandbox's Python process cannot start: {reason}")
            )
            self._ready.exception()  # Reported to whoever opens a kernel; not also at exit.

    def _reap(self) -> None:
        """Ends the zygote process, which ends all it forked, and forgets it."""
        control, process, base = self._control, self._process, self._base
        self._control = self._process = self._base = None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control)
            control.close()
        if process is not None:
            try:
                process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if base is not None:
            shutil.rmtree(base, ignore_errors=True)

    async def open(self, images: Sequence[str]) -> ForkKernel:
        """Forks a session; see `KernelProvider`."""
        async with self._fork_slots:
            return await self._open(images)

    async def _open(self, images: Sequence[str]) -> ForkKernel:
        pictures = self._held(images)
        # Duplicates, so that the images outlive their place in the cache.
        memory = [os.dup(picture.memory) for picture in pictures]
        try:
            child = await self._fork("session")
            try:
                opening = wire.pack({"images": [picture.described for picture in pictures]})
                sent = socket.send_fds(child.conn, [opening], memory)
                loop = asyncio.get_running_loop()
                _, channel = await loop.create_unix_connection(_Channel, sock=child.conn)
                if sent < len(opening):
                    assert channel.transport is not None
                    channel.transport.write(opening[sent:])
            except BaseException:
                await child.end()
                raise
        finally:
            for descriptor in memory:
                os.close(descriptor)
        return ForkKernel(child, channel, self._settings.interrupt_grace)

    async def _fork(self, role: str) -> _Child:
        assert self._ready is not None
        if self._closed:
            raise SandboxUnavailable("the sandbox server is shutting down")
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), self._settings.startup_timeout)
        except TimeoutError:
            raise SandboxUnavailable(
                f"Python did not start within {self._settings.startup_timeout:g} s"
            ) from None
        if self._control is None or self._base is None:
            raise SandboxUnavailable("the sandbox's Python process has ended; try again")
        scratch = None
        if role == "session":
            scratch = self._base / uuid4().hex
            scratch.mkdir(mode=0o700)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        request = {"role": role, "scratch": None if scratch is None else str(scratch)}
        handle = -1
        try:
            with theirs:
                socket.send_fds(self._control, [msgpack.packb(request)], [theirs.fileno()])
            handle = await _read_greeting(ours)
        except (OSError, TimeoutError, wire.WireError) as error:
            raise SandboxUnavailable(f"a session could not be started: {error}") from error
        finally:
            if handle < 0:
                ours.close()
                await _remove(scratch)
        return _Child(ours, handle, scratch)

    def _held(self, images: Sequence[str]) -> list[_Picture]:
        missing = sorted({digest for digest in images if digest not in self._pictures})
        if missing:
            raise ImagesMissing(missing)
        for digest in images:
            self._pictures.move_to_end(digest)
        return [self._pictures[digest] for digest in images]

    async def add_image(self, digest: str, data: bytes) -> None:
        """Decodes an image once and holds its pixels; see `KernelProvider`."""
        if digest in self._pictures:
            return
        if digest not in self._decoding:
            task = asyncio.ensure_future(self._decode_and_hold(digest, data))
            self._decoding[digest] = task
            task.add_done_callback(lambda _: self._decoding.pop(digest))
        await asyncio.shield(self._decoding[digest])

    async def _decode_and_hold(self, digest: str, data: bytes) -> None:
        async with self._decoder_lock:
            # A decoder may have died with its zygote; one that dies twice dies of the image.
            picture = await self._try_decode(data) or await self._try_decode(data)
        if picture is None:
            raise ImageRejected("the image could not be decoded: it crashed or stalled its decoder")
        self._pictures[digest] = picture
        held = sum(picture.size for picture in self._pictures.values())
        while held > self._settings.image_cache_mb << 20 and len(self._pictures) > 1:
            _, oldest = self._pictures.popitem(last=False)
            os.close(oldest.memory)
            held -= oldest.size

    async def _try_decode(self, data: bytes) -> _Picture | None:
        if self._decoder is None:
            self._decoder = await self._fork("decoder")
            self._decoder.conn.settimeout(_DECODE_SECONDS)
        try:
            pixels = self._settings.max_image_pixels
            return await asyncio.to_thread(_decode, self._decoder.conn, data, pixels)
        except (OSError, wire.WireError) as error:
            logger.warning("the image decoder failed: %s", error)
            decoder, self._decoder = self._decoder, None
            await decoder.end()
            return None

    async def close(self) -> None:
        """Ends the zygote and with it every session."""
        self._closed = True
        if self._decoder is not None:
            await self._decoder.end()
            self._decoder = None
        self._reap()
        for picture in self._pictures.values():
            os.close(picture.memory)
        self._pictures.clear()


def _decode(conn: socket.socket, data: bytes, max_pixels: int) -> _Picture:
    """Has an image decoded by the jailed decoder. Blocks.

    Raises:
        ImageRejected: The decoder does not take the image.
        OSError, WireError: The decoder died or did not answer.
    """
    source = os.memfd_create("image")
    target = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(source, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(source, 0, os.SEEK_SET)
        socket.send_fds(conn, [wire.pack({"max_pixels": max_pixels})], [source, target])
        received = wire.receive(conn)
        if received is None:
            raise wire.WireError("the decoder ended")
        reply, descriptors = received
        if descriptors or not isinstance(reply, dict) or len(reply) != 1:
            # Whatever took the decoder over must not fill this process with descriptors either.
            for descriptor in descriptors:
                os.close(descriptor)
            raise wire.WireError("the decoder sent something else than a reply")
        if "image" not in reply:
            raise ImageRejected(str(reply.get("refused")))
        # From here on nobody can change the pixels, neither the decoder nor a session.
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(target, fcntl.F_ADD_SEALS, seals)
        return _Picture(reply["image"], target, os.fstat(target).st_size)
    except BaseException:
        os.close(target)
        raise
    finally:
        os.close(source)


def _zygote_environment(base: Path) -> dict[str, str]:
    """All that sessions see of the environment: no secret of the server's is in it."""
    package_root = str(Path(__file__).resolve().parents[4])
    path = [package_root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONSAFEPATH": "1",
        "TMPDIR": str(base),
        "IPYTHONDIR": str(base / "ipython"),
        # Every malloc arena reserves 64 MiB of the address space that a session is given.
        "MALLOC_ARENA_MAX": "2",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    # matplotlib's font cache takes seconds to build: use the one in the user's home.
    kept = ("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "TZ")
    return environment | {name: os.environ[name] for name in kept if name in os.environ}


async def _read_greeting(conn: socket.socket) -> int:
    """Waits for a forked child to report; returns a handle of its process."""
    await _readable(conn.fileno(), _FORK_SECONDS)
    greeting = conn.recv(1 << 16)
    if not greeting:
        raise wire.WireError("its process ended at once")
    message = wire.unpack(memoryview(greeting)[wire.HEADER.size :])
    if "failure" in message:
        raise wire.WireError(message["failure"])
    handle = os.pidfd_open(message["pid"])
    try:
        # Its end is still open: so the process was alive, and the handle is no other's.
        if conn.recv(1, socket.MSG_PEEK) == b"":
            raise wire.WireError("its process ended at once")
    except BlockingIOError:
        return handle
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    raise wire.WireError("it spoke out of turn")


async def _readable(descriptor: int, timeout: float) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await asyncio.wait_for(event.wait(), timeout)
    finally:
        loop.remove_reader(descriptor)


async def _remove(directory: Path | None) -> None:
    if directory is None:
        return
    try:
        directory.rmdir()  # Nearly always empty.
    except FileNotFoundError:
        return
    except OSError:
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
