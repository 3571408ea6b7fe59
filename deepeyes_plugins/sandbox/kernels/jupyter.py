"""Jupyter kernel: runs any installed kernelspec with its provisioner.

It is for custom environments. The kernels are not isolated by this package: the kernelspec
decides where and with what rights its process runs.

Sessions cannot be saved and restored, since their environment may lack cloudpickle.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_client.localinterfaces import is_local_ip
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from PIL import Image

from deepeyes_plugins.protocol.pixels import is_8bit
from deepeyes_plugins.sandbox.contracts import ExecutionResult, Outcome, SandboxUnavailable
from deepeyes_plugins.sandbox.kernels.contract import (
    ImageRejected,
    ImagesMissing,
    Snapshot,
    SnapshotFailed,
)
from deepeyes_plugins.sandbox.kernels.fork.images import (
    INPUT_FORMATS,
    ImageRefused,
    decode_into,
    encode_png,
    reason,
)
from deepeyes_plugins.sandbox.kernels.fork.isolation import LAYERS
from deepeyes_plugins.sandbox.kernels.fork.process import unique_bytes
from deepeyes_plugins.sandbox.kernels.jupyter_prelude import NAMES_TYPE
from deepeyes_plugins.sandbox.kernels.outcomes import DIED, KILLED, MALFORMED, timed_out
from deepeyes_plugins.sandbox.kernels.output import BoundedImages, BoundedText
from deepeyes_plugins.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)

_EXIT_SECONDS = 30.0
# The reply to a cell and its output are sent on different connections. The later one follows
# within milliseconds, or is lost.
_OUTPUT_SECONDS = 5.0
_NO_REPLY: Final = {
    "status": "error",
    "ename": "KeyboardInterrupt",
    "traceback": ["KeyboardInterrupt: the kernel was interrupted before it replied to this cell"],
}
_POLL_SECONDS = 1.0
# Each start takes most of a second of CPU time.
_STARTS_AT_ONCE = 8
_MAX_MESSAGE_BYTES = 256 << 20
# Parsing takes milliseconds per megabyte: larger messages are parsed in a thread.
_LARGE_MESSAGE_BYTES = 1 << 20
_MAX_NAMES = 10_000
_FOLDER_PREFIX = "deepeyes-jupyter-"
_MARK = "DEEPEYES_SANDBOX_SESSION"
_PRELUDE = Path(__file__).with_name("jupyter_prelude.py")
_PRELUDE_NAME = "<deepeyes>"
_NOT_SAVED: Final = (
    "sessions of the jupyter kernel cannot be saved: their variables are in an environment of "
    "their own"
)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


@dataclass(frozen=True)
class _Spec:
    """Installed kernelspec and its provisioner."""

    name: str
    language: str
    provisioner: str
    local: bool


class _Output:
    """Output of a kernel: of the running cell, and text that threads write after their cell."""

    def __init__(self, settings: SandboxSettings) -> None:
        self._settings = settings
        self.stdout = BoundedText(settings.max_stdout_characters)
        self.stderr = BoundedText(settings.max_stderr_characters)
        self.names: list[str] = []
        self.begin("")

    def begin(self, request: str) -> None:
        """Prepare for the cell of a request; text written between two cells is preserved."""
        self._request = request
        self._images = BoundedImages(self._settings.max_images)
        self._result = ""
        self._error_name: str | None = None
        self.idle = asyncio.Event()

    async def receive(self, message: dict[str, Any]) -> None:
        """Process a message of the kernel's output; raise if it is invalid."""
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream":
            stream = self.stderr if content["name"] == "stderr" else self.stdout
            stream.write(content["text"])
        elif message["parent_header"].get("msg_id") != self._request:
            return
        elif kind == "error":
            self._fail(content)
        elif kind in ("display_data", "execute_result"):
            await self._show(content["data"], last=kind == "execute_result")
        elif kind == "status" and content["execution_state"] == "idle":
            self.idle.set()

    def _fail(self, content: dict[str, Any]) -> None:
        self._error_name = str(content["ename"])
        self.stderr.write(_ANSI.sub("", "\n".join(content["traceback"])).rstrip() + "\n")

    async def _show(self, data: dict[str, Any], *, last: bool) -> None:
        encoded = data.get("image/png") or data.get("image/jpeg")
        if NAMES_TYPE in data:
            self.names = [str(name) for name in data[NAMES_TYPE]][:_MAX_NAMES]
        elif encoded:
            # As in a notebook, an image is shown without its repr.
            await self._show_image(encoded)
        elif last:
            text = BoundedText(self._settings.max_stdout_characters)
            text.write(data.get("text/plain", ""))
            self._result = text.take()
        elif "text/plain" in data:
            self.stdout.write(f"{data['text/plain']}\n")

    async def _show_image(self, encoded: str) -> None:
        png, images = b"", self._images
        try:
            if not images.full:
                png = await asyncio.to_thread(_png, encoded, self._settings.max_image_pixels)
            images.add(png)
        except ImageRefused as error:
            self.stderr.write(f"{error}\n")

    def finish(self, reply: dict[str, Any], duration: float) -> ExecutionResult:
        """Return the result of the cell, from its output and the kernel's reply."""
        if reply["status"] != "ok" and self._error_name is None:
            self._fail({"ename": reply.get("ename"), "traceback": reply.get("traceback", ())})
        self.stderr.write(self._images.note)
        ended = self._take("ok" if self._error_name is None else "error", duration)
        return replace(ended, result=self._result, error_name=self._error_name)

    def break_off(self, reason: str, duration: float) -> ExecutionResult:
        """Return the result of a cell whose kernel has died."""
        self.stderr.write(reason)
        return self._take("killed", duration)

    def _take(self, outcome: Outcome, duration: float) -> ExecutionResult:
        return ExecutionResult(
            outcome,
            stdout=self.stdout.take(),
            stderr=self.stderr.take(),
            images=self._images.images,
            duration=duration,
        )


class JupyterKernel:
    """Jupyter kernel of one session."""

    def __init__(
        self,
        settings: SandboxSettings,
        spec: _Spec,
        folder: Path,
        context: zmq.asyncio.Context,
        on_closed: Callable[[JupyterKernel], None],
    ) -> None:
        """Initialize the kernel; ``start`` starts it.

        Args:
            settings: Limits of the session.
            spec: Kernelspec to start.
            folder: Folder for the session's files; removed at the end.
            context: ZeroMQ context of the connections.
            on_closed: Called after the kernel's end and cleanup.
        """
        self._settings = settings
        self._spec = spec
        self._folder = folder
        self._context = context
        self._on_closed = on_closed
        self._manager = AsyncKernelManager(
            kernel_name=spec.name, context=context, connection_file=str(folder / "connection.json")
        )
        self._client: AsyncKernelClient | None = None
        self._output = _Output(settings)
        self._dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Future[None]] = set()
        self._starting: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._started = False
        self._handle = -1
        self._pid = 0
        self._running = False
        self._broken = False

    @property
    def alive(self) -> bool:
        """Whether the kernel's process runs and its connections are intact."""
        return not self._dead.done()

    @property
    def names(self) -> Sequence[str]:
        """Variables defined by the code; see ``Kernel``."""
        return self._output.names

    async def start(self, images: Sequence[bytes]) -> None:
        """Start the kernel's process, and wait until its images are loaded.

        Raises:
            SandboxUnavailable: It cannot be started; the message says why.
        """
        seconds = self._settings.startup_timeout
        self._starting = asyncio.ensure_future(self._begin(images, seconds))
        either: set[asyncio.Future[None]] = {self._starting, self._dead}
        try:
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if self._dead.done():
                raise RuntimeError("its process exited at once")
            if not self._starting.done():
                raise TimeoutError(f"it was not ready within {seconds:g} s")
            self._starting.result()
        except SandboxUnavailable:
            raise
        except Exception as error:  # Provisioners may raise anything.
            log_tail = await asyncio.to_thread(_tail, self._folder / "kernel.log")
            raise SandboxUnavailable(
                f"no kernel of the kernelspec {self._spec.name!r} can be started: {error}{log_tail}"
            ) from error
        self._started = True
        self._run_in_background(self._read())

    async def _begin(self, images: Sequence[bytes], seconds: float) -> None:
        await self._launch()
        self._client = self._manager.client(context=self._context)
        self._client.start_channels(stdin=False, hb=False, control=False)
        await self._client.wait_for_ready(timeout=seconds)
        await self._prepare(images)

    async def _launch(self) -> None:
        files = self._folder / "files"
        await asyncio.to_thread(files.mkdir, mode=0o700, parents=True)
        options: dict[str, Any] = {"env": self._environment(files)}
        with open(self._folder / "kernel.log", "wb") as log:
            if self._spec.local:
                options |= {
                    "cwd": str(files),
                    "stdin": subprocess.DEVNULL,
                    "stdout": subprocess.DEVNULL,
                    "stderr": log,
                }
            await self._manager.start_kernel(**options)
        if self._spec.local:
            self._pid = getattr(self._manager.provisioner, "pid", None) or 0
        if self._pid:
            self._handle = os.pidfd_open(self._pid)
            asyncio.get_running_loop().add_reader(self._handle, self._end)
        else:
            self._run_in_background(self._poll())

    def _environment(self, files: Path) -> dict[str, str]:
        """Return the kernel's environment, to which its kernelspec may add."""
        inherited = ("PATH", "HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "TZ")
        environment = {name: os.environ[name] for name in inherited if name in os.environ}
        environment |= {"LANG": "C.UTF-8", _MARK: self._folder.name}
        if self._spec.local:
            environment |= {"TMPDIR": str(files), "IPYTHONDIR": str(self._folder / "ipython")}
        return environment

    async def _prepare(self, images: Sequence[bytes]) -> None:
        if self._spec.language != "python":
            if images:
                raise SandboxUnavailable(
                    f"a session with images needs a Python kernel; the kernelspec "
                    f"{self._spec.name!r} is for {self._spec.language or 'an unnamed language'}"
                )
            return
        program = await asyncio.to_thread(_PRELUDE.read_text, encoding="utf-8")
        program += "\nfrom IPython import get_ipython\nprepare(get_ipython())\n"
        error = await self._ask(
            f"exec(compile({program!r}, {_PRELUDE_NAME!r}, 'exec'), "
            f"{{'__name__': {_PRELUDE_NAME!r}, '__file__': {_PRELUDE_NAME!r}}})"
        )
        if error:
            raise SandboxUnavailable(
                f"the kernelspec {self._spec.name!r} cannot be used, since it is not an ipykernel: "
                f"{error}"
            )
        for number, data in enumerate(images, start=1):
            await self._attach(f"image_{number}", data)

    async def _attach(self, name: str, data: bytes) -> None:
        error = "FileNotFoundError"
        if self._spec.local:
            path = self._folder / name
            await asyncio.to_thread(path.write_bytes, data)
            error = await self._ask(f"get_ipython().deepeyes_image({name!r}, path={str(path)!r})")
        if error.startswith("FileNotFoundError"):
            # The kernel is on another machine or in a container.
            text = base64.b64encode(data).decode("ascii")
            error = await self._ask(f"get_ipython().deepeyes_image({name!r}, data={text!r})")
        if error:
            raise SandboxUnavailable(
                f"the kernelspec {self._spec.name!r} cannot open images ({error}); its environment "
                "needs Pillow"
            )

    async def _ask(self, code: str) -> str:
        """Run internal code in the kernel; return its error, or ""."""
        assert self._client is not None
        reply = await self._reply(self._client.execute(code, silent=True, allow_stdin=False))
        return "" if reply["status"] == "ok" else f"{reply.get('ename')}: {reply.get('evalue')}"

    async def execute(self, code: str, timeout: float) -> ExecutionResult:
        """Run one cell; see ``Kernel``."""
        if not self.alive:
            return ExecutionResult("lost", stderr=DIED)
        try:
            code.encode()
        except UnicodeEncodeError as error:  # It can be neither sent nor compiled.
            stderr = "".join(traceback.format_exception_only(error))
            return ExecutionResult("error", stderr=stderr, error_name=type(error).__name__)
        started = time.perf_counter()
        cell = asyncio.ensure_future(self._run(code, started))
        self._running, in_time, reason = True, True, DIED
        try:
            if not await self._ended(cell, timeout):
                in_time = False
                await self._interrupt()
                if not await self._ended(cell, self._settings.interrupt_grace):
                    reason = KILLED.format(timeout)
                    await self.close()
        except asyncio.CancelledError:
            cell.cancel()
            await self.close()
            raise
        finally:
            self._running = False
        if cell.done() and not cell.cancelled() and cell.exception() is None:
            return cell.result() if in_time else timed_out(cell.result(), timeout)
        # Unless the connections were closed, the failure was caused by an invalid message.
        self._broken |= cell.done() and not self._dead.done()
        cell.cancel()
        await self.close()
        duration = time.perf_counter() - started
        return self._output.break_off(MALFORMED if self._broken else reason, duration)

    async def _ended(self, cell: asyncio.Future[ExecutionResult], timeout: float) -> bool:
        either: set[asyncio.Future[Any]] = {cell, self._dead}
        done, _ = await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)

    async def _run(self, code: str, started: float) -> ExecutionResult:
        assert self._client is not None
        request = self._client.execute(code, allow_stdin=False, stop_on_error=False)
        self._output.begin(request)
        reply = asyncio.ensure_future(self._reply(request))
        idle = asyncio.ensure_future(self._output.idle.wait())
        both: set[asyncio.Future[Any]] = {reply, idle}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(both, timeout=_OUTPUT_SECONDS)
            answer = reply.result() if reply.done() else _NO_REPLY
            return self._output.finish(answer, time.perf_counter() - started)
        finally:
            reply.cancel()
            idle.cancel()

    async def _reply(self, request: str) -> dict[str, Any]:
        assert self._client is not None
        while True:
            message = await _message(self._client.shell_channel)
            if message["parent_header"].get("msg_id") == request:
                content: dict[str, Any] = message["content"]
                return content

    async def _read(self) -> None:
        """Receive the kernel's output continuously, also between cells."""
        assert self._client is not None
        try:
            while True:
                await self._output.receive(await _message(self._client.iopub_channel))
                # Receiving buffered messages does not yield to the event loop.
                await asyncio.sleep(0)
        except Exception as error:
            logger.warning("a session sent an invalid Jupyter message: %r", error)
            self._broken = True
            self._end()

    async def _poll(self) -> None:
        """Monitor a kernel whose process is not on this machine."""
        while True:
            try:
                if not await asyncio.wait_for(self._manager.is_alive(), _EXIT_SECONDS):
                    break
            except Exception as error:
                logger.warning("the provisioner failed to report whether a kernel runs: %r", error)
            await asyncio.sleep(_POLL_SECONDS)
        self._end()

    def _run_in_background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def interrupt(self) -> None:
        """Interrupt the running cell."""
        if self._running:
            self._run_in_background(self._interrupt())

    async def _interrupt(self) -> None:
        try:
            await asyncio.wait_for(self._manager.interrupt_kernel(), self._settings.interrupt_grace)
        except Exception as error:
            logger.warning("a session could not be interrupted: %r", error)

    async def snapshot(self, max_bytes: int) -> Snapshot:
        """Raise SnapshotFailed: not supported."""
        raise SnapshotFailed(_NOT_SAVED)

    async def restore(self, data: bytes) -> dict[str, str]:
        """Raise SnapshotFailed: not supported."""
        raise SnapshotFailed(_NOT_SAVED)

    def memory(self) -> int:
        """Return the unshared memory of this kernel; 0 if it is not on this machine."""
        return unique_bytes(self._pid) if self._pid else 0

    def _end(self) -> None:
        """Handle the end of the process, or of its usability."""
        self._mark_dead()
        if self._started:  # Otherwise ``start`` reports the failure, and its caller closes.
            self._close_once()

    async def close(self) -> None:
        """Kill the kernel's processes and remove its files."""
        self._mark_dead()
        await asyncio.shield(self._close_once())

    def _mark_dead(self) -> None:
        if not self._dead.done():
            self._dead.set_result(None)

    def _close_once(self) -> asyncio.Future[None]:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        return self._closing

    async def _close(self) -> None:
        if self._handle >= 0:
            asyncio.get_running_loop().remove_reader(self._handle)
            os.close(self._handle)
        self._pid = 0
        for task in self._tasks:
            task.cancel()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._client is not None:
            self._client.stop_channels()
        try:
            await asyncio.wait_for(self._manager.shutdown_kernel(now=True), _EXIT_SECONDS)
        except Exception as error:
            logger.warning("a kernel may not have ended: %r", error)
        await asyncio.to_thread(_remove_traces, self._folder)
        self._on_closed(self)


class JupyterProvider:
    """Provider of kernels of one kernelspec."""

    restorable = False

    def __init__(self, settings: SandboxSettings) -> None:
        self._settings = settings
        self._spec: _Spec | None = None
        self._folder: Path | None = None
        self._context: zmq.asyncio.Context | None = None
        self._kernels: set[JupyterKernel] = set()
        self._images: OrderedDict[str, bytes] = OrderedDict()
        self._decoder_lock = asyncio.Lock()
        self._starts = asyncio.Semaphore(_STARTS_AT_ONCE)
        self._closed = False

    def notes(self) -> dict[str, str]:
        """Return the kernelspec, and that sessions are not saved; see ``KernelProvider``."""
        notes = {"sessions": _NOT_SAVED}
        if self._spec is not None:
            notes["kernelspec"] = f"{self._spec.name}, started by {self._spec.provisioner}"
        return notes

    def isolation(self) -> dict[str, str]:
        """Report all layers as left to the provisioner; see ``KernelProvider``."""
        name = self._settings.jupyter_kernelspec
        return dict.fromkeys(LAYERS, f"left to the provisioner of the kernelspec {name!r}")

    async def start(self) -> None:
        """Find the kernelspec and start a first kernel; see ``KernelProvider``."""
        name = self._settings.jupyter_kernelspec
        if not self._settings.allow_unisolated:
            raise SandboxUnavailable(
                "the jupyter kernel isolates nothing by itself: model-written code runs with all "
                f"rights that the kernelspec {name!r} gives it, by default those of this user. "
                "Use a kernelspec whose provisioner isolates its kernels (a container, another "
                "machine) and set allow_unisolated, or use the kernel 'fork'"
            )
        logger.warning("sessions are isolated only as far as the kernelspec %r isolates them", name)
        self._spec = await asyncio.to_thread(_find_spec, name)
        self._folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=_FOLDER_PREFIX))
        self._context = zmq.asyncio.Context()
        self._context.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
        kernel = await self.open([])
        await kernel.close()

    async def add_image(self, digest: str, data: bytes) -> None:
        """Validate and store an image; see ``KernelProvider``."""
        if digest in self._images:
            return
        async with self._decoder_lock:  # Serialized, to limit the memory for decoded pixels.
            data = await asyncio.to_thread(_accepted, data, self._settings.max_image_pixels)
        self._images[digest] = data
        total_bytes = sum(map(len, self._images.values()))
        while total_bytes > self._settings.image_cache_mb << 20 and len(self._images) > 1:
            total_bytes -= len(self._images.popitem(last=False)[1])

    async def open(self, images: Sequence[str]) -> JupyterKernel:
        """Start a kernel; see ``KernelProvider``."""
        missing = sorted({digest for digest in images if digest not in self._images})
        if missing:
            raise ImagesMissing(missing)
        for digest in images:
            self._images.move_to_end(digest)
        data = [self._images[digest] for digest in images]
        async with self._starts:
            if self._closed or self._spec is None or self._folder is None or self._context is None:
                raise SandboxUnavailable("the sandbox server is starting or shutting down")
            kernel = JupyterKernel(
                self._settings,
                self._spec,
                self._folder / uuid4().hex,
                self._context,
                self._kernels.discard,
            )
            self._kernels.add(kernel)
            try:
                await kernel.start(data)
            except BaseException:
                await kernel.close()
                raise
        return kernel

    async def close(self) -> None:
        """Stop all kernels and remove their files."""
        self._closed = True
        await asyncio.gather(*(kernel.close() for kernel in list(self._kernels)))
        self._images.clear()
        if self._context is not None:
            await asyncio.to_thread(self._context.destroy, 0)
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


async def _message(channel: Any) -> dict[str, Any]:
    """Receive a message of a kernel.

    Raises:
        ValueError: It is invalid, or not signed with the session's key.
    """
    frames = await channel.socket.recv_multipart()
    _, parts = channel.session.feed_identities(frames)
    if sum(map(len, parts)) > _LARGE_MESSAGE_BYTES:
        message: dict[str, Any] = await asyncio.to_thread(channel.session.deserialize, parts)
    else:
        message = channel.session.deserialize(parts)
    return message


def _find_spec(name: str) -> _Spec:
    """Find a kernelspec and its provisioner. Blocks.

    Raises:
        SandboxUnavailable: One of them is not installed.
    """
    specs = KernelSpecManager()
    try:
        spec = specs.get_kernel_spec(name)
    except NoSuchKernel:
        places = specs.find_kernel_specs()
        if name in places:  # It is installed, but its provisioner is not.
            wanted = KernelSpec.from_resource_dir(places[name]).metadata["kernel_provisioner"]
            known = ", ".join(sorted(KernelProvisionerFactory.instance().provisioners))
            raise SandboxUnavailable(
                f"the kernelspec {name!r} names the provisioner {wanted['provisioner_name']!r}, "
                f"which is not installed here; installed are: {known}"
            ) from None
        installed = ", ".join(sorted(places)) or "none"
        raise SandboxUnavailable(
            f"there is no kernelspec {name!r}; installed are: {installed}. Set jupyter_kernelspec "
            "to one of these, or install it (in its environment: python -m ipykernel install "
            f"--user --name {name})"
        ) from None
    factory = KernelProvisionerFactory.instance()
    stanza: dict[str, Any] = spec.metadata.get("kernel_provisioner", {})
    provisioner = str(stanza.get("provisioner_name", factory.default_provisioner_name))
    try:
        local = issubclass(factory.provisioners[provisioner].load(), LocalProvisioner)
    except Exception as error:
        raise SandboxUnavailable(
            f"the provisioner {provisioner!r} of the kernelspec {name!r} cannot be imported: "
            f"{error}"
        ) from error
    is_local_ip("127.0.0.1")  # Fills the cache of the machine's addresses, which may take a while.
    return _Spec(name, spec.language.lower(), provisioner, local)


def _accepted(data: bytes, max_pixels: int) -> bytes:
    """Accept the same images as the fork kernel. Blocks.

    Returns:
        The file, re-encoded if it does not have 8 bits per channel.

    Raises:
        ImageRejected: The data is not a valid image.
    """
    source = os.memfd_create("image")
    try:
        with open(source, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(source, 0, os.SEEK_SET)
        with open(os.devnull, "wb") as discarded:
            decode_into(source, discarded.fileno(), max_pixels, lazy_pixels=max_pixels)
        with Image.open(io.BytesIO(data), formats=INPUT_FORMATS) as image:
            return data if is_8bit(image) else encode_png(image)
    except ImageRefused as error:
        raise ImageRejected(str(error)) from error
    finally:
        os.close(source)


def _png(encoded: str, max_pixels: int) -> bytes:
    """Convert an image that a cell displayed to PNG. Blocks.

    Raises:
        ImageRefused: It is not a PNG or JPEG, or too large.
    """
    try:
        data = base64.b64decode(encoded)
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > max_pixels:
                raise ImageRefused(
                    f"an image of {image.width}x{image.height} pixels is too large to return; "
                    "crop or resize it first"
                )
            return data if image.format == "PNG" else encode_png(image)
    except ImageRefused:
        raise
    except Exception as error:
        raise ImageRefused(f"displayed data is not a readable image{reason(error)}") from error


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
    except OSError:
        return ""
    return "\n" + "\n".join(lines) if lines else ""


def _remove_traces(folder: Path) -> None:
    """Kill all processes of a session and remove its files. Blocks."""
    mark = f"{_MARK}={folder.name}".encode()
    # The kernel's process group is dead; processes that left it are found by their environment.
    # Each round finds processes that were forked during the previous one.
    for _ in range(100):
        if not any([_kill_marked(entry.name, mark) for entry in os.scandir("/proc")]):
            break
    shutil.rmtree(folder, ignore_errors=True)


def _kill_marked(name: str, mark: bytes) -> bool:
    if not name.isdigit():
        return False
    try:
        handle = os.pidfd_open(int(name))
    except OSError:
        return False
    try:
        if mark not in Path("/proc", name, "environ").read_bytes().split(b"\0"):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
