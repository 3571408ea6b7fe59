"""Runs a server, or one worker of several, until it is told to end."""

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
    """A uvicorn server that tells its parent where it listens, and ends with it."""

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
        self._crew = pool

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._options.parent:
            self._end_with(self._options.parent)
        await super().startup(sockets)
        if self.started:
            port = self._listener.getsockname()[1]
            if self._crew.count == 1:
                logger.info("the sandbox listens on http://%s:%d", self._options.host, port)
            announce(self._options.announce_fd, {"port": port})

    def _end_with(self, parent: int) -> None:
        # A process handle turns readable when the whole parent has ended. The kernel's parent-death
        # signal would do so when the one thread ends that started us.
        loop = asyncio.get_running_loop()
        handle = os.pidfd_open(parent)
        if os.getppid() != parent:
            raise SystemExit("the parent process has ended already")

        def end() -> None:
            loop.remove_reader(handle)
            if self._crew.folder is not None:
                shutil.rmtree(self._crew.folder, ignore_errors=True)
            self.handle_exit(signal.SIGTERM, None)

        loop.add_reader(handle, end)


def configure_logging(level: str, log_format: str) -> None:
    """Send log records to standard error, as text or as one JSON object a line."""
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
    """Serve until SIGTERM, SIGINT or the end of the parent process.

    Raises:
        SystemExit: The server could not start; the message says why.
    """
    configure_logging(options.log_level, options.log_format)
    token = os.environ.get(settings.token_env) or None
    if token is None and options.host not in LOOPBACK:
        failure = (
            f"anyone who can reach {options.host} could run code here: put a bearer token into "
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
        ended_by = supervise(settings, options, listener)
    if ended_by:
        announce(options.announce_fd, {"failure": ended_by})
        raise SystemExit(ended_by)


def run_worker(
    settings: SandboxSettings, options: ServerOptions, listener: socket.socket, pool: WorkerPool
) -> None:
    """Serve in this process, alone or as one of a pool.

    Raises:
        SystemExit: The server could not start; the message says why.
    """
    # Every session holds two descriptors here, every client connection one.
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
    with contextlib.suppress(SystemExit):  # It has logged why; the parent is told below.
        server.run(sockets=sockets)
    if not server.started:
        failure = getattr(app.state, "failure", "the server did not start; see its log")
        announce(options.announce_fd, {"failure": failure})
        sys.exit(failure)


def _own_socket(pool: WorkerPool) -> socket.socket:
    """The socket on which the other workers ask this one."""
    path = pool.socket(pool.index)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(4096)
    return listener
