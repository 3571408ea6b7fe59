"""Entry points of the server process: options, logging, listener, uvicorn and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import warnings
from dataclasses import dataclass
from typing import Literal

import uvicorn

from deepeyes_plugins.sandbox.contracts import SandboxUnavailable
from deepeyes_plugins.sandbox.server import create_app
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.serving.process import (
    bearer_token,
    configuration,
    configure_logging,
    listen,
)

logger = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 2


@dataclass(frozen=True)
class ServerOptions:
    """Options of a server, apart from the settings of its sessions.

    Attributes:
        host: Address to listen on.
        port: Port; 0 picks a free one.
        log_level: debug, info, warning or error.
        log_format: ``text``, or ``json`` for one JSON object per line.
        announce_fd: File descriptor that receives the port, or the reason of a failure; -1: none.
        parent: Process ID of the process with which the server ends; 0: none.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"
    announce_fd: int = -1
    parent: int = 0

    def announce(self, message: dict[str, object]) -> None:
        """Write a message to the parent process, and close the pipe."""
        if self.announce_fd >= 0:
            with (
                contextlib.suppress(BrokenPipeError),
                open(self.announce_fd, "w", encoding="utf-8") as pipe,
            ):
                pipe.write(json.dumps(message) + "\n")

    def fail(self, failure: str, detail: str = "") -> SystemExit:
        """Announce why the server could not start; return the exception to raise."""
        self.announce({"failure": failure})
        return SystemExit(detail or failure)


def ignore_workers(workers: int | None) -> None:
    """Warn that ``--workers``, accepted for one more version, has no effect."""
    if workers is not None:
        warnings.warn(
            "--workers is deprecated and has no effect: a server is one process, and runs cells "
            "in processes of their own. If it uses a whole core, start another server on another "
            "port and give clients all URLs: DEEPEYES_SANDBOX_URL=http://host:8080,http://host:8081",
            FutureWarning,
            stacklevel=2,
        )


class _Server(uvicorn.Server):
    """Uvicorn server that announces its port to its parent process, and ends with it."""

    def __init__(
        self, config: uvicorn.Config, listener: socket.socket, options: ServerOptions
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._options = options

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._options.parent:
            self._exit_with(self._options.parent)
        await super().startup(sockets)
        if self.started:
            port = self._listener.getsockname()[1]
            logger.info("the sandbox listens on http://%s:%d", self._options.host, port)
            self._options.announce({"port": port})

    def _exit_with(self, parent: int) -> None:
        # A pidfd turns readable when the whole parent has ended. The parent-death signal would be
        # sent as soon as the thread ends that started this process.
        loop = asyncio.get_running_loop()
        handle = os.pidfd_open(parent)
        if os.getppid() != parent:
            raise SystemExit("the parent process has ended already")

        def end() -> None:
            loop.remove_reader(handle)
            self.handle_exit(signal.SIGTERM, None)

        loop.add_reader(handle, end)


def serve(settings: SandboxSettings, options: ServerOptions) -> None:
    """Run the server until SIGTERM, SIGINT or the exit of the parent process.

    Raises:
        SystemExit: The server could not start; the message says why.
    """
    configure_logging(options.log_level, options.log_format)
    try:
        token = bearer_token(settings.token_env, options.host, "run code here")
    except ValueError as error:
        raise options.fail(str(error)) from None
    try:
        listener = listen(options.host, options.port)
        app = create_app(settings, token=token, host=options.host)
    except OSError as error:
        reason = f"cannot listen on {options.host}:{options.port}: {error}"
        raise options.fail(str(error), reason) from None
    except SandboxUnavailable as error:
        raise options.fail(str(error)) from None
    config = configuration(app, log_level=options.log_level, shutdown_seconds=_SHUTDOWN_SECONDS)
    server = _Server(config, listener, options)
    with listener, contextlib.suppress(SystemExit):  # Uvicorn has logged the reason.
        server.run(sockets=[listener])
    if not server.started:
        raise options.fail(getattr(app.state, "failure", "the server did not start; see its log"))
