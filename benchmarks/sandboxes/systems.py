"""Common interface of the measured sandboxes: sessions that run cells."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import httpx
import psutil
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from deepeyes_plugins.sandbox import (
    SandboxClient,
    SandboxError,
    SandboxSession,
    SandboxSettings,
    start_server,
)

CELL_SECONDS = 30.0
START_SECONDS = 180.0
KERNEL_SECONDS = 60.0
KERNEL_ATTEMPTS = 3
WANTED_SESSIONS = 800
PEER_SESSIONS = 16  # Enough to know what one more costs.


class NotOffered(Exception):
    """The system lacks the feature, so there is no result."""


class Failed(Exception):
    """A cell had a wrong result."""


@dataclass
class Cell:
    """Output of one cell; ``error`` is empty if it succeeded."""

    stdout: str = ""
    images: list[bytes] = field(default_factory=list)
    error: str = ""


class Session(ABC):
    """A live session."""

    @abstractmethod
    async def execute(self, code: str) -> Cell:
        """Runs a cell."""

    @abstractmethod
    async def close(self) -> None:
        """Ends the session."""

    async def evict(self) -> None:
        """Evict the session; the next cell must restore it."""
        raise NotOffered("no eviction")


class System(ABC):
    """Something that runs sessions.

    Attributes:
        name: As shown.
        kind: `ours`; `live`, a peer with a process per session; `legacy`, one behind the legacy
            API.
        sessions: How many it is asked to keep alive for the figure of memory.
    """

    name: str
    kind: Literal["ours", "live", "legacy"]
    sessions: int = PEER_SESSIONS

    @abstractmethod
    async def start(self) -> None:
        """Makes it ready, and warm where that matters."""

    @abstractmethod
    async def open(self, picture: bytes | None = None) -> Session:
        """Opens a session; with a picture its first cell finds it as `image_1`."""

    def processes(self) -> list[psutil.Process]:
        """All processes of its server and sessions."""
        raise NotOffered("its processes are not known")

    @abstractmethod
    async def close(self) -> None:
        """Ends it, if it was started here."""


def family(pid: int) -> list[psutil.Process]:
    """A process and its descendants."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


class DeepEyes(System):
    """This project's server, over its native API."""

    name = "deepeyes"
    kind = "ours"

    def __init__(self, sessions: int) -> None:
        """Will serve with the default settings, but for room for that many sessions."""
        self.sessions = sessions

    async def start(self) -> None:
        """Starts the server on loopback."""
        self._server = start_server(SandboxSettings(max_sessions=self.sessions + 64))
        self._client = SandboxClient(self._server.url, token=self._server.token)

    async def open(self, picture: bytes | None = None) -> Session:
        """Uploads the picture if the server does not have it."""
        return _Native(await self._client.create_session([picture] if picture else []))

    def processes(self) -> list[psutil.Process]:
        """The server, the zygote and the sessions."""
        return family(self._server.pid)

    async def close(self) -> None:
        """Ends the server."""
        await self._client.close()
        self._server.close()


class _Native(Session):
    def __init__(self, session: SandboxSession) -> None:
        self._session = session

    async def execute(self, code: str) -> Cell:
        result = await self._session.execute(code, CELL_SECONDS)
        error = "" if result.outcome == "ok" else f"{result.outcome}: {result.stderr}"
        return Cell(result.stdout, result.images, error)

    async def evict(self) -> None:
        # An older client or server under test may not have it.
        evict: Callable[[], Awaitable[None]] | None = getattr(self._session, "evict", None)
        if evict is None:
            raise NotOffered("no eviction: the client has no evict()")
        try:
            await evict()
        except SandboxError as error:
            if "answered 404" in str(error):
                raise NotOffered("no eviction: HTTP 404") from None
            raise

    async def close(self) -> None:
        await self._session.close()


class _PictureInCode(Session):
    """A session of a system to which a picture can only go as text in the first cell."""

    def __init__(self, picture: bytes | None) -> None:
        self._prelude = ""
        if picture is not None:
            text = base64.b64encode(picture).decode("ascii")
            self._prelude = (
                "import base64, io\n"
                "from PIL import Image\n"
                f"image_1 = Image.open(io.BytesIO(base64.b64decode('{text}')))\n"
            )

    async def execute(self, code: str) -> Cell:
        prelude, self._prelude = self._prelude, ""
        return await self.run(prelude + code)

    @abstractmethod
    async def run(self, code: str) -> Cell: ...


class Legacy(System):
    """A running server with the legacy API."""

    kind = "legacy"

    def __init__(self, name: str, url: str) -> None:
        """Will talk to that base URL."""
        self.name = name
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            timeout=CELL_SECONDS,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )

    async def start(self) -> None:
        """Lets every worker of the server run something once."""
        sessions = [await self.open() for _ in range(8)]
        answers = await asyncio.gather(*(session.execute("print(1)") for session in sessions))
        await asyncio.gather(*(session.close() for session in sessions))
        if wrong := [answer.error or answer.stdout for answer in answers if answer.stdout != "1\n"]:
            raise Failed(f"{self.name} does not work: {wrong[0]}")

    async def open(self, picture: bytes | None = None) -> Session:
        """Chooses a name; the server begins the session with its first cell."""
        return _LegacySession(self._http, picture)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()


class _LegacySession(_PictureInCode):
    def __init__(self, http: httpx.AsyncClient, picture: bytes | None) -> None:
        super().__init__(picture)
        self._http = http
        self._id = uuid4().hex

    async def run(self, code: str) -> Cell:
        body = {"session_id": self._id, "code": code, "timeout": CELL_SECONDS}
        response = await self._http.post("/jupyter_sandbox", json=body)
        response.raise_for_status()
        answer = response.json()
        output = answer["output"]
        # This API tells of errors by sentences in stderr; warnings are there, too.
        failed = answer["status"] != "success" or "Error" in output["stderr"]
        images = [base64.b64decode(image) for image in output["images"]]
        return Cell(output["stdout"], images, output["stderr"] or "error" if failed else "")

    async def close(self) -> None:
        await self._http.post("/clear_session", json={"session_id": self._id})


class IPyKernel(System):
    """One stock ipykernel per session, driven without any server in between."""

    name = "ipykernel"
    kind = "live"

    def __init__(self) -> None:
        """Has no kernels yet."""
        self._kernels: list[AsyncKernelManager] = []
        self._numbers = itertools.count()
        self._folder = tempfile.TemporaryDirectory(prefix="kernels-", dir="/tmp")

    async def start(self) -> None:
        """Reads its files once."""
        await (await self.open()).close()

    async def open(self, picture: bytes | None = None) -> Session:
        """Starts a kernel and waits until it answers."""
        for _ in range(KERNEL_ATTEMPTS):
            # TCP ports that are free when they are chosen may be taken when a kernel wants them:
            # of many that start at once, some never answer, or answer each other's clients.
            manager = AsyncKernelManager(
                kernel_name="python3",
                transport="ipc",
                ip=f"{self._folder.name}/{next(self._numbers)}",
            )
            # Stock kernels that start at once fight for the file of their common history, and say
            # so in the middle of a cell's output.
            await manager.start_kernel(
                extra_arguments=["--HistoryManager.hist_file=:memory:"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self._kernels.append(manager)
            client: AsyncKernelClient = manager.client()
            client.start_channels()
            session = _KernelSession(manager, client, self._kernels, picture)
            try:
                await client.wait_for_ready(timeout=KERNEL_SECONDS)
                return session
            except RuntimeError:
                await session.close()
        raise Failed(f"a kernel did not answer in {KERNEL_ATTEMPTS} times {KERNEL_SECONDS:g} s")

    def processes(self) -> list[psutil.Process]:
        """The kernels."""
        pids = [getattr(manager.provisioner, "pid", None) for manager in self._kernels]
        return [process for pid in pids if pid for process in family(pid)]

    async def close(self) -> None:
        """Ends the kernels that are left."""
        for manager in self._kernels:
            await manager.shutdown_kernel(now=True)
        self._folder.cleanup()


class _KernelSession(_PictureInCode):
    def __init__(
        self,
        manager: AsyncKernelManager,
        client: AsyncKernelClient,
        kernels: list[AsyncKernelManager],
        picture: bytes | None,
    ) -> None:
        super().__init__(picture)
        self._manager = manager
        self._client = client
        self._kernels = kernels

    async def run(self, code: str) -> Cell:
        request = self._client.execute(code, allow_stdin=False)
        cell = await _gather(self._client.get_iopub_msg, request)
        await self._client.get_shell_msg(timeout=CELL_SECONDS)
        return cell

    async def close(self) -> None:
        self._client.stop_channels()
        await self._manager.shutdown_kernel(now=True)
        self._kernels.remove(self._manager)


class KernelGateway(System):
    """jupyter_kernel_gateway: stock kernels behind HTTP and websockets."""

    name = "kernel_gateway"
    kind = "live"

    @staticmethod
    def installed() -> bool:
        """Whether it can be started."""
        return importlib.util.find_spec("kernel_gateway") is not None

    async def start(self) -> None:
        """Starts the gateway on loopback."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        # As with bare kernels: no common history.
        self._folder = tempfile.TemporaryDirectory()
        profile = Path(self._folder.name) / "profile_default"
        profile.mkdir()
        (profile / "ipython_kernel_config.py").write_text(
            "get_config().HistoryManager.hist_file = ':memory:'\n"
        )
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "kernel_gateway"),
                *(f"--KernelGatewayApp.port={port}", "--KernelGatewayApp.ip=127.0.0.1"),
                "--KernelGatewayApp.port_retries=0",
            ],
            env=os.environ | {"IPYTHONDIR": self._folder.name},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            timeout=START_SECONDS,
            trust_env=False,
        )
        while True:
            try:
                (await self._http.get("/api")).raise_for_status()
                break
            except httpx.ConnectError:
                if self._process.poll() is not None:
                    raise Failed("jupyter_kernel_gateway did not start") from None
                await asyncio.sleep(0.1)
        await (await self.open()).close()

    async def open(self, picture: bytes | None = None) -> Session:
        """Starts a kernel and connects to it."""
        response = await self._http.post("/api/kernels", json={"name": "python3"})
        response.raise_for_status()
        kernel = response.json()["id"]
        port = self._http.base_url.port
        channel = await websocket_connect(
            f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels",
            max_message_size=1 << 30,
        )
        return _GatewaySession(self._http, kernel, channel, picture)

    def processes(self) -> list[psutil.Process]:
        """The gateway and its kernels."""
        return family(self._process.pid)

    async def close(self) -> None:
        """Ends the gateway with its kernels."""
        await self._http.aclose()
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


class _GatewaySession(_PictureInCode):
    def __init__(
        self,
        http: httpx.AsyncClient,
        kernel: str,
        channel: WebSocketClientConnection,
        picture: bytes | None,
    ) -> None:
        super().__init__(picture)
        self._http = http
        self._kernel = kernel
        self._channel = channel

    async def run(self, code: str) -> Cell:
        request = uuid4().hex
        header = {"msg_id": request, "msg_type": "execute_request", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        message = {
            "channel": "shell",
            "header": header | {"username": "", "session": self._kernel, "date": ""},
            "parent_header": {},
            "metadata": {},
            "content": content,
        }
        try:
            await self._channel.write_message(json.dumps(message))
        except WebSocketClosedError:
            raise Failed("the gateway closed the connection") from None
        return await _gather(self._next, request)

    async def _next(self, timeout: float) -> dict[str, Any]:
        text = await asyncio.wait_for(self._channel.read_message(), timeout)
        if text is None:
            raise Failed("the gateway closed the connection")
        return dict(json.loads(text))

    async def close(self) -> None:
        self._channel.close()
        await self._http.delete(f"/api/kernels/{self._kernel}")


async def _gather(get: Callable[..., Awaitable[dict[str, Any]]], request: str) -> Cell:
    """Reads a kernel's messages until it has finished with a request."""
    cell = Cell()
    while True:
        message = await get(timeout=CELL_SECONDS)
        if message["parent_header"].get("msg_id") != request:
            continue
        content = message["content"]
        match message["header"]["msg_type"]:
            case "stream" if content["name"] == "stdout":
                cell.stdout += content["text"]
            case "display_data" if picture := content["data"].get("image/png"):
                cell.images.append(base64.b64decode(picture))
            case "error":
                cell.error = f"{content['ename']}: {content['evalue']}"
            case "status" if content["execution_state"] == "idle":
                return cell
