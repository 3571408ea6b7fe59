"""Zygote: process that imports the libraries once and forks a child for each session.

It never runs untrusted code, and has no threads and no event loop. Requests arrive on a SEQPACKET
socket, one message each, with the socket of the new child as file descriptor. When the server
closes the socket, the zygote kills its children, removes the server's files and exits.

Images are decoded by a child, too, which is isolated like a session but never runs code: image
files are untrusted, and a vulnerability of a decoder must expose neither the zygote nor sessions.
One decoder serves all images. It writes the pixels to memory that the server seals, and all
sessions map the same pages, so the rollouts of a prompt share one decoded copy of their image.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import msgpack

from deepeyes_plugins.sandbox.kernels.fork import folders, wire
from deepeyes_plugins.sandbox.kernels.fork.isolation import (
    Jail,
    die_with_parent,
    mapped_bytes,
    mount_scratch,
)
from deepeyes_plugins.sandbox.kernels.output import OutputLimits

MAX_MESSAGE_BYTES = 1 << 16


@dataclass(frozen=True)
class Plan:
    """Configuration of the zygote, the first message of the server."""

    base: str
    warm_modules: list[str]
    layers: list[str]
    readable: list[str]
    memory_bytes: int
    file_bytes: int
    scratch_bytes: int
    network: bool
    font_folders: list[str]
    limits: dict[str, int]


class Zygote:
    """The fork server."""

    def __init__(self, control: socket.socket, plan: Plan) -> None:
        self._control = control
        self._plan = plan
        self._pid = os.getpid()
        self._children: set[int] = set()

    def warm(self) -> None:
        """Import the libraries, and freeze the garbage collector so that pages stay shared."""
        from deepeyes_plugins.sandbox.kernels.fork.fonts import use_cjk_font
        from deepeyes_plugins.sandbox.kernels.fork.shell import Shell

        self._cjk_font = use_cjk_font(self._plan.font_folders)
        self._shell = Shell(OutputLimits(**self._plan.limits))
        self._shell.warm()
        for module in self._plan.warm_modules:
            importlib.import_module(module)
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            raise RuntimeError(
                f"importing {', '.join(self._plan.warm_modules) or 'the libraries'} started "
                f"{threads - 1} threads, which a fork would lose; remove it from warm_modules"
            )
        # A session imports only from its own folder and from readable paths.
        sys.path[:] = ["", *(entry for entry in sys.path if self._readable(entry))]
        mapped = mapped_bytes()
        pixel_bytes = 4 * self._plan.limits["image_pixels"]
        jail = Jail(
            layers=self._plan.layers,
            readable=self._plan.readable,
            address_space_bytes=mapped + self._plan.memory_bytes,
            file_bytes=self._plan.file_bytes,
            scratch_bytes=self._plan.scratch_bytes,
            network=self._plan.network,
        )
        self._jails = {
            "session": jail,
            # Enough for a file, its pixels, and their copy in the shared layout.
            "decoder": replace(
                jail, address_space_bytes=mapped + 4 * pixel_bytes, file_bytes=pixel_bytes
            ),
        }
        gc.collect()
        gc.freeze()
        gc.disable()

    def _readable(self, path: str) -> bool:
        real = os.path.realpath(path)
        return bool(path) and any(
            real == root or real.startswith(f"{root}/") for root in self._plan.readable
        )

    def serve(self) -> None:
        """Fork on request until the server closes the socket."""
        report = {"scratch_quota": self._try_mount()}
        signal.signal(signal.SIGCHLD, self._reap)
        self._control.send(msgpack.packb({"ready": report, "cjk_font": self._cjk_font}))
        while True:
            packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 1)
            if not packet:
                break
            request = msgpack.unpackb(packet)
            pid = os.fork()
            if pid == 0:
                _run_child(self, request, descriptors[0])
            self._children.add(pid)
            os.close(descriptors[0])

    def _try_mount(self) -> str:
        """Test in a child whether a tmpfs can be mounted; return why not, or ""."""
        if "scratch_quota" not in self._plan.layers:
            return ""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                mount_scratch(self._plan.base, self._plan.scratch_bytes)
            except BaseException as error:
                os.write(writing, str(error).encode()[:1000])
            finally:
                os._exit(0)
        os.close(writing)
        os.waitpid(pid, 0)
        with open(reading, encoding="utf-8", errors="replace") as pipe:
            failure = pipe.read()
        if failure:
            self._jails = {
                role: replace(
                    jail, layers=[layer for layer in jail.layers if layer != "scratch_quota"]
                )
                for role, jail in self._jails.items()
            }
        return failure

    def _reap(self, number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._children.discard(pid)

    def end(self) -> None:
        """Kill all children and remove the server's files."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for pid in self._children:
            # Only an unreaped child can be waited for, so its process ID is not reused yet.
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        folders.remove(Path(self._plan.base))

    def become(self, request: dict[str, Any], conn: socket.socket) -> None:
        """Run a new child in its requested role, until its socket is closed."""
        die_with_parent(self._pid)
        # The kernel distributes CPU time between process sessions first (autogroup), so that many
        # busy threads of one get no more than a single thread of another.
        os.setsid()
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(null, standard)
        os.closerange(3, conn.fileno())
        os.closerange(conn.fileno() + 1, 1 << 16)
        gc.enable()
        # If memory runs out, the kernel kills sessions before the server and other processes.
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(score, b"1000")
        os.close(score)
        scratch = request["scratch"]
        self._jails[request["role"]].enter(scratch)
        if scratch is not None:
            os.chdir(scratch)
            os.environ.update(HOME=scratch, TMPDIR=scratch)
            tempfile.tempdir = scratch
        wire.send(conn, {"pid": os.getpid()})
        if request["role"] == "decoder":
            _decode_images(conn)
        else:
            self._run_cells(conn)

    def _run_cells(self, conn: socket.socket) -> None:
        from deepeyes_plugins.sandbox.kernels.fork.images import attach

        self._shell.rehearse()
        received = wire.receive(conn)
        if received is None:
            return
        opening, descriptors = received
        images = [attach(*pair) for pair in zip(opening["images"], descriptors, strict=True)]
        self._shell.begin(images)
        while (received := wire.receive(conn, sys.maxsize)) is not None:
            self._shell.listen_for_interrupts()
            request, descriptors = received
            try:
                answer = self._answer(request, *descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            wire.send(conn, *answer)

    def _answer(self, request: dict[str, Any], *memory: int) -> tuple[dict[str, Any], bytes]:
        match request:
            case {"save": _} | {"restore": _} if not memory:
                return {"failure": "the session has no file descriptor left"}, b""
            case {"save": max_bytes}:
                return self._shell.save(memory[0], max_bytes), b""
            case {"restore": _}:
                return self._shell.restore(memory[0]), b""
            case {"code": code}:
                done = self._shell.run(code)
                images = done["images"]
                return done | {"images": [len(image) for image in images]}, b"".join(images)
        raise ValueError(f"unknown request: {list(request)}")


def _run_child(zygote: Zygote, request: dict[str, Any], descriptor: int) -> None:
    """Run a child, and exit: it must not return to the zygote's loop."""
    status = 1
    try:
        conn = socket.socket(fileno=descriptor)
        try:
            zygote.become(request, conn)
            status = 0
        except Exception as error:
            with contextlib.suppress(OSError):
                wire.send(conn, {"failure": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(status)


def _decode_images(conn: socket.socket) -> None:
    from deepeyes_plugins.sandbox.kernels.fork.images import ImageRefused, decode_into

    while (received := wire.receive(conn)) is not None:
        request, (source, target) = received
        reply: dict[str, Any]
        try:
            metadata = decode_into(source, target, **request)
            reply = {"lazy": True} if metadata is None else {"image": metadata}
        except ImageRefused as error:
            reply = {"refused": str(error)}
        os.close(source)
        os.close(target)
        wire.send(conn, reply)


def main() -> None:
    """Run the zygote on the inherited socket whose number is the only argument."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # It exits only when its socket is closed, after the cleanup.
        signal.signal(number, signal.SIG_IGN)
    plan = Plan(**msgpack.unpackb(control.recv(MAX_MESSAGE_BYTES)))
    zygote = Zygote(control, plan)
    try:
        zygote.warm()
        zygote.serve()
    except Exception as error:
        with contextlib.suppress(OSError):
            control.send(msgpack.packb({"failure": f"{type(error).__name__}: {error}"}))
        raise
    finally:
        zygote.end()


if __name__ == "__main__":
    main()
