"""A kernel as somebody else would write one: IPython in a subprocess that reads lines of JSON.

`make` is what the setting `kernel` names. It shows all of the contract in little code; it isolates
nothing.
"""

from __future__ import annotations

import asyncio
import base64
import builtins
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from deepeyes_plugins.sandbox.contracts import ExecutionResult
from deepeyes_plugins.sandbox.kernels.contract import (
    ImageRejected,
    ImagesMissing,
    Snapshot,
    SnapshotFailed,
)
from deepeyes_plugins.sandbox.kernels.fork.images import INPUT_FORMATS, as_png
from deepeyes_plugins.sandbox.kernels.outcomes import DIED, KILLED, timed_out
from deepeyes_plugins.sandbox.kernels.output import BoundedImages, BoundedText
from deepeyes_plugins.sandbox.settings import SandboxSettings

ROOT = Path(__file__).parents[2]
MAX_LINE_BYTES = 1 << 28


class SubprocessKernel:
    """The server's side of one session."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, grace: float) -> None:
        self._process = process
        self._folder = folder
        self._grace = grace
        self._closed = self._running = False
        self.names: Sequence[str] = ()

    @property
    def alive(self) -> bool:
        return not self._closed and self._process.returncode is None

    async def ask(self, **request: Any) -> Any:
        """The child's reply, or None when it has gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            await self._process.stdin.drain()
            line = await self._process.stdout.readline()
            return json.loads(line) if line else None

    async def execute(self, code: str, timeout: float) -> ExecutionResult:
        if not self.alive:
            return ExecutionResult("lost", stderr=DIED)
        started = time.perf_counter()
        reply = asyncio.ensure_future(self.ask(do="run", code=code))
        self._running = True
        done, _ = await asyncio.wait({reply}, timeout=timeout)
        in_time = bool(done)
        if not in_time:
            self.interrupt()
            done, _ = await asyncio.wait({reply}, timeout=self._grace)
        self._running = False
        killed = not done
        if killed:
            await self.close()
        fields = await reply
        duration = time.perf_counter() - started
        if fields is None:
            await self.close()
            reason = KILLED.format(timeout) if killed else DIED
            return ExecutionResult("killed", stderr=reason, duration=duration)
        self.names = fields.pop("names")
        fields["images"] = [base64.b64decode(image) for image in fields["images"]]
        result = ExecutionResult(duration=duration, **fields)
        return result if in_time else timed_out(result, timeout)

    def interrupt(self) -> None:
        if self._running and self.alive:
            self._process.send_signal(signal.SIGINT)

    async def snapshot(self, max_bytes: int) -> Snapshot:
        reply = await self.ask(do="snapshot", max_bytes=max_bytes) if self.alive else None
        if reply is None:
            raise SnapshotFailed("the session has ended")
        return Snapshot(base64.b64decode(reply["data"]), reply["names"], reply["lost"])

    async def restore(self, data: bytes) -> dict[str, str]:
        reply = await self.ask(do="restore", data=base64.b64encode(data).decode("ascii"))
        if reply is None or "failure" in reply:
            raise SnapshotFailed(f"this is no snapshot: {reply}")
        self.names = reply["names"]
        return {}

    def memory(self) -> int:
        return 0

    async def close(self) -> None:
        self._closed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class SubprocessProvider:
    """Starts a subprocess for each session."""

    restorable = True

    def __init__(self, settings: SandboxSettings) -> None:
        self._settings = settings
        self._images: dict[str, bytes] = {}
        self._kernels: list[SubprocessKernel] = []

    def isolation(self) -> dict[str, str]:
        return {"everything": "this kernel is an example"}

    def notes(self) -> dict[str, str]:
        return {"origin": "a third party"}

    async def start(self) -> None:
        """Nothing to prepare."""

    async def add_image(self, digest: str, data: bytes) -> None:
        try:
            with Image.open(io.BytesIO(data), formats=INPUT_FORMATS) as image:
                await asyncio.to_thread(image.load)
        except Exception as error:
            raise ImageRejected(f"not a readable image: {error}") from error
        self._images[digest] = data

    async def open(self, images: Sequence[str]) -> SubprocessKernel:
        missing = sorted(set(images) - set(self._images))
        if missing:
            raise ImagesMissing(missing)
        folder = Path(tempfile.mkdtemp(prefix="third-party-"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, self._settings.model_dump_json()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={
                "PATH": os.defpath,
                "PYTHONPATH": str(ROOT),
                "IPYTHONDIR": str(folder / ".ipython"),
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            },
            start_new_session=True,
            limit=MAX_LINE_BYTES,
        )
        kernel = SubprocessKernel(process, folder, self._settings.interrupt_grace)
        self._kernels.append(kernel)
        files = [base64.b64encode(self._images[digest]).decode("ascii") for digest in images]
        await kernel.ask(do="attach", images=files)
        return kernel

    async def close(self) -> None:
        await asyncio.gather(*(kernel.close() for kernel in self._kernels))


def make(settings: SandboxSettings) -> SubprocessProvider:
    return SubprocessProvider(settings)


class Child:
    """The session's side: an IPython shell whose output is collected."""

    def __init__(self, settings: SandboxSettings) -> None:
        from IPython.core.displayhook import DisplayHook
        from IPython.core.displaypub import DisplayPublisher
        from IPython.core.interactiveshell import InteractiveShell

        shown: list[tuple[dict[str, Any], bool]] = []

        class Publisher(DisplayPublisher):
            def publish(self, data: dict[str, Any], *args: Any, **kwargs: Any) -> None:
                shown.append((data, False))

        class Hook(DisplayHook):
            def write_format_data(self, format_dict: dict[str, Any], md_dict: Any = None) -> None:
                shown.append((format_dict, True))

            start_displayhook = write_output_prompt = finish_displayhook = lambda self: None

        class Shell(InteractiveShell):
            display_pub_class = Publisher
            displayhook_class = Hook

        self._settings = settings
        self._shown = shown
        self._shell: Any = Shell.instance()
        self._shell._showtraceback = self._show_traceback
        self._error_name: str | None = None
        self._hidden: dict[str, Any] = {}

    def attach(self, images: list[str]) -> dict[str, Any]:
        for number, data in enumerate(images, start=1):
            image = Image.open(io.BytesIO(base64.b64decode(data)))
            self._shell.user_ns[f"image_{number}"] = image
        self._hidden = dict(self._shell.user_ns)
        return {}

    def run(self, code: str) -> dict[str, Any]:
        limit = self._settings.max_stdout_characters
        out, err = BoundedText(limit), BoundedText(self._settings.max_stderr_characters)
        sys.stdout, sys.stderr, sys.stdin = out, err, io.StringIO()
        self._error_name, success = None, False
        self._shown.clear()
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                success = self._shell.run_cell(code, store_history=True).success
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        except BaseException as error:  # Code that is no text, or an interrupt in IPython itself.
            self._error_name = type(error).__name__
            err.write(self._error_name)
        images, text = self._sort(out, err)
        return {
            "outcome": "ok" if success and self._error_name is None else "error",
            "stdout": out.take(),
            "stderr": err.take(),
            "result": text,
            "images": [base64.b64encode(image).decode("ascii") for image in images],
            "error_name": self._error_name,
            "names": self._names(),
        }

    def _sort(self, out: BoundedText, err: BoundedText) -> tuple[list[bytes], str]:
        images = BoundedImages(self._settings.max_images)
        result = BoundedText(self._settings.max_stdout_characters)
        for data, is_value in self._shown:
            encoded = data.get("image/png") or data.get("image/jpeg")
            if encoded:
                raw = base64.b64decode(encoded) if isinstance(encoded, str) else encoded
                images.add(as_png(raw))
            elif is_value:
                result.write(data.get("text/plain", ""))
            else:
                out.write(data.get("text/plain", "") + "\n")
        err.write(images.note)
        return images.images, result.take()

    def _show_traceback(self, kind: type, error: BaseException, lines: list[str]) -> None:
        self._error_name = kind.__name__
        parts = traceback.format_exception(error)
        if isinstance(error, SyntaxError):
            parts = traceback.format_exception_only(error)
        sys.stderr.write("".join(parts))

    def _names(self) -> list[str]:
        return [
            name
            for name, value in self._shell.user_ns.items()
            if not name.startswith("_") and self._hidden.get(name, self) is not value
        ]

    def snapshot(self, max_bytes: int) -> dict[str, Any]:
        import cloudpickle

        namespace = self._shell.user_ns
        sizes: dict[str, int] = {}
        lost = {path.name: "files are not saved" for path in Path().glob("[!.]*")}
        for name in self._names():
            try:
                sizes[name] = len(cloudpickle.dumps(namespace[name]))
            except Exception as error:
                lost[name] = f"it cannot be pickled: {error}"
        # All at once, so that what belongs together still does afterwards.
        while len(data := cloudpickle.dumps({name: namespace[name] for name in sizes})) > max_bytes:
            largest = max(sizes, key=lambda name: sizes[name])
            lost[largest] = f"it is too large: {sizes.pop(largest)} bytes"
        return {
            "data": base64.b64encode(data).decode("ascii"),
            "names": list(sizes),
            "lost": lost,
        }

    def restore(self, data: str) -> dict[str, Any]:
        import cloudpickle

        namespace = self._shell.user_ns
        try:
            restored = cloudpickle.loads(base64.b64decode(data))
        except Exception as error:
            return {"failure": str(error)}
        for name, value in restored.items():
            if isinstance(value, types.FunctionType) and value.__module__ == "__main__":
                # So that it sees what later cells do to the variables that it uses.
                value = types.FunctionType(
                    value.__code__, namespace, name, value.__defaults__, value.__closure__
                )
            namespace[name] = value
        return {"names": list(restored)}


def no_input(*args: Any) -> str:
    raise EOFError("input() is not available here")


def serve(settings: SandboxSettings) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    builtins.input = no_input
    child = Child(settings)
    for line in requests:
        request = json.loads(line)
        answer: Callable[..., dict[str, Any]] = getattr(child, request.pop("do"))
        print(json.dumps(answer(**request)), file=replies, flush=True)


if __name__ == "__main__":
    serve(SandboxSettings.model_validate_json(sys.argv[1]))
