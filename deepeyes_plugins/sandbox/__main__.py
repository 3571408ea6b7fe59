"""Runs a sandbox server: `python -m deepeyes_plugins.sandbox --port 8080`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import sys

import uvicorn
from pydantic import ValidationError

from .server import create_app
from .settings import SandboxSettings

logger = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 2


class _Server(uvicorn.Server):
    """A uvicorn server that tells its parent where it listens, and ends with it."""

    def __init__(
        self, config: uvicorn.Config, listener: socket.socket, announce: int, parent: int
    ) -> None:
        super().__init__(config)
        self._listener = listener
        self._announce = announce
        self._parent = parent

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._parent:
            self._end_with(self._parent)
        await super().startup(sockets)
        if self.started:
            host, port = self._listener.getsockname()[:2]
            logger.info("the sandbox listens on http://%s:%d", host, port)
            _announce(self._announce, {"port": port})

    def _end_with(self, parent: int) -> None:
        # A process handle turns readable when the whole parent has ended. The kernel's parent-death
        # signal would do so when the one thread ends that started us.
        loop = asyncio.get_running_loop()
        handle = os.pidfd_open(parent)
        if os.getppid() != parent:
            raise SystemExit("the parent process has ended already")

        def end() -> None:
            loop.remove_reader(handle)
            self.handle_exit(signal.SIGTERM, None)

        loop.add_reader(handle, end)


def _announce(descriptor: int, message: dict[str, object]) -> None:
    if descriptor >= 0:
        with open(descriptor, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps(message) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deepeyes_plugins.sandbox",
        description="Runs model-written Python in isolated sessions, over HTTP.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="port; 0 takes a free one")
    parser.add_argument("--settings", default="{}", help="sandbox settings as a JSON object")
    parser.add_argument("--log-level", default="info", help="debug, info, warning or error")
    parser.add_argument("--announce-fd", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Serves until SIGTERM, SIGINT or the end of the parent process."""
    arguments = _arguments()
    logging.basicConfig(level=arguments.log_level.upper(), format="%(levelname)s: %(message)s")
    try:
        settings = SandboxSettings.model_validate_json(arguments.settings)
    except ValidationError as error:
        raise SystemExit(f"--settings: {error}") from None
    # Every session holds two descriptors here, every client connection one.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    token = os.environ.get(settings.token_env) or None
    if token is None and arguments.host not in ("127.0.0.1", "::1", "localhost"):
        logger.warning(
            "anyone who can reach %s can run code here; set a token in $%s",
            arguments.host,
            settings.token_env,
        )
    app = create_app(settings, token=token)
    config = uvicorn.Config(
        app,
        log_level=arguments.log_level,
        access_log=False,
        backlog=4096,
        timeout_keep_alive=120,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    try:
        family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
        listener = socket.create_server((arguments.host, arguments.port), family=family)
    except OSError as error:
        _announce(arguments.announce_fd, {"failure": str(error)})
        raise SystemExit(f"cannot listen on {arguments.host}:{arguments.port}: {error}") from None
    server = _Server(config, listener, arguments.announce_fd, arguments.parent)
    with contextlib.suppress(SystemExit):  # It has logged why; the parent is told below.
        server.run(sockets=[listener])
    if not server.started:
        failure = getattr(app.state, "failure", "the server did not start; see its log")
        _announce(arguments.announce_fd, {"failure": failure})
        sys.exit(failure)


if __name__ == "__main__":
    main()
