"""A real HTTP server for as long as a test needs it."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


class LocalServer:
    """Serves routes on a free port of loopback, in a thread, for as long as the context lasts.

    Attributes:
        root: Its URL, without a path.
        port: The port; give it to another one to come back at the same address.
    """

    def __init__(self, *routes: Route, port: int = 0) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(Starlette(routes=list(routes)), log_level="error", lifespan="off")
        config.timeout_graceful_shutdown = 1
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> Self:
        self._socket.listen(1024)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def breaks_off() -> Response:
    """An answer whose connection is cut in the middle of the body."""

    async def beginning() -> AsyncIterator[bytes]:
        yield b'{"result": [[{"docu'

    return StreamingResponse(beginning(), headers={"Content-Length": "1000"})
