"""Provider of the fork kernel: zygote, spare sessions, shared images and quotas."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4
from weakref import WeakSet

import msgpack

from deepeyes_plugins.sandbox.contracts import SandboxUnavailable
from deepeyes_plugins.sandbox.kernels.fork import folders, isolation, wire
from deepeyes_plugins.sandbox.kernels.fork.kernel import ForkKernel
from deepeyes_plugins.sandbox.kernels.fork.pictures import SharedImages
from deepeyes_plugins.sandbox.kernels.fork.process import (
    Channel,
    Child,
    remove_folder,
    wait_for_greeting,
)
from deepeyes_plugins.sandbox.kernels.output import OutputLimits, max_characters
from deepeyes_plugins.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)

_EXIT_SECONDS = 30.0
_QUOTA_CHECK_SECONDS = 1.0
_THREADS_CHECK_SECONDS = 0.25
# Each thread takes a process ID and kernel memory, which no resource limit of a process covers.
_MAX_THREADS = 512
# The zygote forks serially. The kernel limits the number of descriptors in flight, so further
# requests are queued here.
_FORKS_AT_ONCE = 64
# So that the refill does not compete with the first cell of the new session.
_REFILL_DELAY_SECONDS = 0.05
_SCRATCH_PREFIX = "deepeyes-sandbox-"
_NO_CJK_FONT = (
    "no font with Chinese, Japanese and Korean characters was found, so figures show boxes in "
    "their place; install one (Debian, Ubuntu: fonts-wqy-microhei or fonts-noto-cjk) or add its "
    "folder to font_folders"
)
# Maximum size of names and reasons in a reply; images and snapshots are sent as bulk.
_REPLY_BYTES = 4 << 20
_BYTES_PER_CHARACTER = 4


class ForkProvider:
    """Provider of kernels forked from a zygote, with shared decoded images."""

    restorable = True

    def __init__(self, settings: SandboxSettings) -> None:
        self._settings = settings
        self._limits = OutputLimits(
            stdout_characters=settings.max_stdout_characters,
            stderr_characters=settings.max_stderr_characters,
            images=settings.max_images,
            image_pixels=settings.max_image_pixels,
        )
        self._layers = isolation.probe()
        self._notes: dict[str, str] = {}
        self._base: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ready: asyncio.Future[None] | None = None
        self._closed = False
        self._images = SharedImages(settings, lambda: self._fork("decoder"))
        self._fork_slots = asyncio.Semaphore(_FORKS_AT_ONCE)
        self._spare: deque[Child] = deque()
        self._refilling: asyncio.Task[None] | None = None
        self._kernels: WeakSet[ForkKernel] = WeakSet()
        self._watches: list[asyncio.Task[None]] = []

    def isolation(self) -> dict[str, str]:
        """Return the state of each isolation layer; see ``KernelProvider``."""
        return dict(self._layers)

    def notes(self) -> dict[str, str]:
        """Return the state of network access and of the fallback font; see ``KernelProvider``."""
        network = "open: allow_network is set" if self._settings.allow_network else "closed"
        return {"network": network, **self._notes}

    async def start(self) -> None:
        """Start a zygote and test a first session; see ``KernelProvider``."""
        missing = isolation.missing(self._layers)
        if missing and not self._settings.allow_unisolated:
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in missing.items())
            raise SandboxUnavailable(
                f"this machine cannot isolate untrusted code ({reasons}). Run the sandbox on a "
                "kernel with Landlock and seccomp (Linux 5.13 or newer), or set allow_unisolated "
                "to run model-written code with all rights of this user"
            )
        for layer, reason in missing.items():
            logger.warning("sessions run without isolation layer %s: %s", layer, reason)
        self._spawn()
        kernel = await self.open([])
        try:
            await self._self_check(kernel)
        finally:
            await kernel.close()
        layers = ", ".join(f"{layer} {state}" for layer, state in self._layers.items())
        logger.info("isolation of sessions: %s", layers)
        if self._layers["scratch_quota"] != "active":
            self._watches.append(asyncio.ensure_future(self._watch_quota()))
        self._watches.append(asyncio.ensure_future(self._watch_threads()))

    async def _self_check(self, kernel: ForkKernel) -> None:
        """Verify in a real session that forbidden operations are denied."""
        assert self._base is not None
        canary = self._base / "canary"
        canary.write_text("readable only outside", encoding="ascii")
        attempts = [f"lambda: open({str(canary)!r})", "lambda: socket.socket(socket.AF_UNIX)"]
        if not self._settings.allow_network:
            attempts.append("socket.socket")
        code = (
            "import socket\n"
            f"for attempt in ({', '.join(attempts)}):\n"
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
                "a session could read a file or open a socket that its isolation must deny"
            )

    def _spawn(self) -> None:
        """Start a zygote, without waiting until it is ready.

        Raises:
            SandboxUnavailable: The process or its folder cannot be created.
        """
        try:
            self._launch()
        except OSError as error:
            self._reap()
            raise SandboxUnavailable(
                f"the sandbox's Python process cannot start: {error}"
            ) from error

    def _launch(self) -> None:
        loop = asyncio.get_running_loop()
        base = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX)).resolve()
        server_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = self._settings
        missing = isolation.missing(self._layers)
        allowed = (*settings.readable_paths, *settings.font_folders)
        readable = [*isolation.interpreter_paths(), *map(os.path.realpath, allowed)]
        if settings.allow_network:
            readable += isolation.NETWORK_PATHS
        plan = {
            "base": str(base),
            "warm_modules": list(settings.warm_modules),
            "layers": [layer for layer in isolation.LAYERS if layer not in missing],
            "readable": readable,
            "memory_bytes": settings.memory_mb << 20,
            "file_bytes": settings.file_mb << 20,
            "scratch_bytes": settings.scratch_mb << 20,
            "network": settings.allow_network,
            "font_folders": list(settings.font_folders),
            "limits": asdict(self._limits),
        }
        self._base, self._control = base, server_end
        self._ready = loop.create_future()
        with child_end:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.zygote", str(child_end.fileno())],
                pass_fds=[child_end.fileno()],
                env=_zygote_environment(base),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        server_end.setblocking(False)
        server_end.send(msgpack.packb(plan))
        loop.add_reader(server_end, self._on_control)

    def _on_control(self) -> None:
        """Handle a message of the zygote, or its end."""
        assert self._control is not None and self._ready is not None
        try:
            packet = self._control.recv(1 << 16)
        except OSError:
            packet = b""
        message = msgpack.unpackb(packet) if packet else {}
        if "ready" in message:
            self._note_quota(message["ready"])
            self._note_font(message["cjk_font"])
            self._ready.set_result(None)
            self._refill()
            return
        reason = message.get("failure", "it exited")
        was_ready = self._ready.done()
        logger.error("the sandbox's zygote failed: %s", reason)
        self._reap()
        if not was_ready:
            # A restart would probably fail as well, so it is left to the next request.
            self._ready.set_exception(
                SandboxUnavailable(f"the sandbox's Python process cannot start: {reason}")
            )
            self._ready.exception()  # Mark it as retrieved: callers of ``open`` receive it.
        elif not self._closed:
            try:
                self._spawn()  # For new sessions; existing ones have died with it.
            except SandboxUnavailable as error:
                logger.error("%s", error)

    def _note_font(self, cjk_font: str | None) -> None:
        self._notes["cjk_font"] = cjk_font or f"none: {_NO_CJK_FONT}"
        if cjk_font is None:
            logger.warning(_NO_CJK_FONT)

    def _note_quota(self, report: dict[str, str]) -> None:
        refused = report["scratch_quota"]
        if refused:
            seconds = f"{_QUOTA_CHECK_SECONDS:g} s"
            self._layers["scratch_quota"] = f"active, checked every {seconds} ({refused})"

    def _reap(self) -> None:
        """Stop the zygote, and with it all its children, and remove its folder."""
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
            folders.remove(base)

    async def add_image(self, digest: str, data: bytes) -> None:
        """Decode an image and store its pixels; see ``KernelProvider``."""
        await self._images.add(digest, data)

    async def open(self, images: Sequence[str]) -> ForkKernel:
        """Fork a session, or take a spare one; see ``KernelProvider``."""
        shared = self._images.take(images)
        try:
            child = await self._ready_child()
            try:
                opening = wire.pack({"images": [image.metadata for image in shared]})
                memory = [image.memory for image in shared]
                sent = socket.send_fds(child.conn, [opening], memory)
                channel = Channel(self._max_reply_bytes())
                loop = asyncio.get_running_loop()
                await loop.create_unix_connection(lambda: channel, sock=child.conn)
                if sent < len(opening):
                    assert channel.transport is not None
                    channel.transport.write(opening[sent:])
            except BaseException:
                await child.end()
                raise
        finally:
            for image in shared:
                os.close(image.memory)
        kernel = ForkKernel(child, channel, self._settings.interrupt_grace, self._limits)
        self._kernels.add(kernel)
        self._refill()
        return kernel

    def _max_reply_bytes(self) -> int:
        limits = self._limits
        characters = 2 * max_characters(limits.stdout_characters)
        characters += max_characters(limits.stderr_characters)
        return _REPLY_BYTES + _BYTES_PER_CHARACTER * characters

    async def _ready_child(self) -> Child:
        while self._spare:
            child = self._spare.popleft()
            if not child.disconnected:
                return child
            await child.end()
        return await self._fork("session")

    def _refill(self) -> None:
        """Fork spare sessions in the background, one by one."""

        async def refill() -> None:
            await asyncio.sleep(_REFILL_DELAY_SECONDS)
            while len(self._spare) < self._settings.spare_sessions:
                self._spare.append(await self._fork("session"))

        if self._closed or (self._refilling is not None and not self._refilling.done()):
            return
        self._refilling = asyncio.ensure_future(refill())
        self._refilling.add_done_callback(_note_failure)

    async def _fork(self, role: str) -> Child:
        async with self._fork_slots:
            assert self._ready is not None
            if self._closed:
                raise SandboxUnavailable("the sandbox server is shutting down")
            if self._process is None:
                self._spawn()
            try:
                await asyncio.wait_for(asyncio.shield(self._ready), self._settings.startup_timeout)
            except TimeoutError:
                raise SandboxUnavailable(
                    f"Python did not start within {self._settings.startup_timeout:g} s"
                ) from None
            if self._control is None or self._base is None:
                raise SandboxUnavailable("the sandbox's Python process has exited; try again")
            scratch = None
            if role == "session":
                scratch = self._base / uuid4().hex
                scratch.mkdir(mode=0o700)
            server_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            server_end.setblocking(False)
            request = {"role": role, "scratch": None if scratch is None else str(scratch)}
            child = None
            try:
                with child_end:
                    socket.send_fds(self._control, [msgpack.packb(request)], [child_end.fileno()])
                child = await wait_for_greeting(server_end, scratch)
            except (OSError, TimeoutError, wire.WireError) as error:
                raise SandboxUnavailable(f"a session could not be started: {error}") from error
            finally:
                if child is None:
                    server_end.close()
                    await remove_folder(scratch)
            return child

    async def _watch_quota(self) -> None:
        """Stop sessions that exceed the quota of files, if the kernel does not enforce it."""
        limit = self._settings.scratch_mb
        while True:
            await asyncio.sleep(_QUOTA_CHECK_SECONDS)
            for kernel in list(self._kernels):
                scratch = kernel.child.scratch
                if not kernel.alive or scratch is None:
                    continue
                size, files = limit << 20, isolation.SCRATCH_FILES
                pid = kernel.child.pid
                if await asyncio.to_thread(folders.exceeds, scratch, pid, size, files):
                    kernel.stop(
                        f"OSError: this session has more than {limit} MiB of files, or more than "
                        f"{files} of them"
                    )

    async def _watch_threads(self) -> None:
        """Stop sessions with too many threads, for which the kernel has no limit per session."""
        while True:
            await asyncio.sleep(_THREADS_CHECK_SECONDS)
            for kernel in list(self._kernels):
                if kernel.may_be_running and kernel.child.threads > _MAX_THREADS:
                    kernel.stop(
                        f"RuntimeError: this session has started more than {_MAX_THREADS} threads"
                    )

    async def close(self) -> None:
        """Stop the zygote and all sessions."""
        self._closed = True
        for task in (self._refilling, *self._watches):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        while self._spare:
            await self._spare.pop().end()
        await self._images.close()
        self._reap()


def _note_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.warning("no spare session could be forked: %s", error)


def _zygote_environment(base: Path) -> dict[str, str]:
    """Return the environment of sessions, without secrets of the server."""
    package_root = str(Path(__file__).resolve().parents[4])
    path = [package_root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONSAFEPATH": "1",
        "TMPDIR": str(base),
        "IPYTHONDIR": str(base / "ipython"),
        # Each malloc arena reserves 64 MiB of a session's address space.
        "MALLOC_ARENA_MAX": "2",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    # Use the user's font cache of matplotlib, which takes seconds to build.
    inherited = ("HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "TZ")
    return environment | {name: os.environ[name] for name in inherited if name in os.environ}
