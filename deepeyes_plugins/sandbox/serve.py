"""Entry points of the server process: logging, listener, uvicorn and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import shutil
import signal
import socket
import sys

import uvicorn

from deepeyes_plugins.sandbox.contracts import SandboxUnavailable
from deepeyes_plugins.sandbox.http_limits import BoundedHttp
from deepeyes_plugins.sandbox.options import ServerOptions, announce
from deepeyes_plugins.sandbox.server import create_app
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.sandbox.supervisor import supervise
from deepeyes_plugins.sandbox.workers import WorkerPool

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SHUTDOWN_SECONDS = 2


class _Server(uvicorn.Server):
    """Uvicorn server that announces its port to its parent process, and ends with it."""

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        options: ServerOptions,
        pool: WorkerPool,
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._options = options
        self._pool = pool

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._options.parent:
            self._exit_with(self._options.parent)
        await super().startup(sockets)
        if self.started:
            port = self._listener.getsockname()[1]
            if self._pool.count == 1:
                logger.info("the sandbox listens on http://%s:%d", self._options.host, port)
            announce(self._options.announce_fd, {"port": port})

    def _exit_with(self, parent: int) -> None:
        # A pidfd turns readable when the whole parent has ended. The parent-death signal would be
        # sent as soon as the thread ends that started this process.
        loop = asyncio.get_running_loop()
        handle = os.pidfd_open(parent)
        if os.getppid() != parent:
            raise SystemExit("the parent process has ended already")

        def end() -> None:
            loop.remove_reader(handle)
            if self._pool.folder is not None:
                shutil.rmtree(self._pool.folder, ignore_errors=True)
            self.handle_exit(signal.SIGTERM, None)

        loop.add_reader(handle, end)


def configure_logging(level: str, log_format: str) -> None:
    """Log to standard error, as text or as one JSON object per line."""
    handler = logging.StreamHandler()
    if log_format == "json":
        from pythonjsonlogger.json import JsonFormatter

        fields = ["levelname", "name", "message", "process"]
        handler.setFormatter(JsonFormatter(fields, style=",", timestamp=True))
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def serve(settings: SandboxSettings, options: ServerOptions) -> None:
    """Run the server until SIGTERM, SIGINT or the exit of the parent process.

    Raises:
        SystemExit: The server could not start; the message says why.
    """
    configure_logging(options.log_level, options.log_format)
    token = os.environ.get(settings.token_env) or None
    if token is None and options.host not in LOOPBACK:
        failure = (
            f"anyone who can reach {options.host} could run code here: set a bearer token in "
            f"${settings.token_env}, or listen on 127.0.0.1"
        )
        announce(options.announce_fd, {"failure": failure})
        raise SystemExit(failure)
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server((options.host, options.port), family=family, backlog=4096)
    except OSError as error:
        announce(options.announce_fd, {"failure": str(error)})
        raise SystemExit(f"cannot listen on {options.host}:{options.port}: {error}") from None
    with listener:
        if options.workers == 1:
            run_worker(settings, options, listener, WorkerPool())
            return
        crash = supervise(settings, options, listener)
    if crash:
        announce(options.announce_fd, {"failure": crash})
        raise SystemExit(crash)


def run_worker(
    settings: SandboxSettings, options: ServerOptions, listener: socket.socket, pool: WorkerPool
) -> None:
    """Serve in this process, alone or as one worker of a pool.

    Raises:
        SystemExit: The server could not start; the message says why.
    """
    # Each session needs two file descriptors, each client connection one.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        app = create_app(settings, token=os.environ.get(settings.token_env) or None, pool=pool)
    except SandboxUnavailable as error:
        announce(options.announce_fd, {"failure": str(error)})
        raise SystemExit(str(error)) from None
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        log_config=None,
        log_level=options.log_level if options.log_level != "info" else "warning",
        access_log=False,
        backlog=4096,
        timeout_keep_alive=120,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    sockets = [listener]
    if pool.count > 1:
        sockets.append(_own_socket(pool))
    server = _Server(config, listener, options, pool)
    with contextlib.suppress(
        SystemExit
    ):  # Uvicorn has logged the reason; the parent is informed below.
        server.run(sockets=sockets)
    if not server.started:
        failure = getattr(app.state, "failure", "the server did not start; see its log")
        announce(options.announce_fd, {"failure": failure})
        sys.exit(failure)


def _own_socket(pool: WorkerPool) -> socket.socket:
    """Open the socket for requests of the other workers."""
    path = pool.socket(pool.index)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(4096)
    return listener
