"""The actor that keeps the sandbox server of one Ray node."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from typing import Any, TypedDict
from urllib.parse import urlsplit

import ray

from deepeyes_plugins.sandbox.embedded import EmbeddedServer, start_server
from deepeyes_plugins.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)

_PORT_SECONDS = 15.0
_LONGEST_PAUSE_SECONDS = 30.0
# Below the ports that systems give to outgoing connections, above those that Ray gives to workers.
_PORTS = range(20_000, 30_000)


class Description(TypedDict):
    """What an actor tells about its server.

    Attributes:
        url: Base URL; None while no server runs.
        token: Bearer token that the server asks for.
        settings: What the server was started with.
        failure: Why no server runs.
    """

    url: str | None
    token: str
    settings: dict[str, Any]
    failure: str


class Keeper:
    """The actor: runs a server on its node, and starts another when it dies.

    The server ends with the process of the actor, which Ray starts anew on the same node.
    """

    def __init__(
        self, settings: dict[str, Any], environment: dict[str, str], *, port: int, workers: int
    ) -> None:
        """Start the server in the background.

        Args:
            settings: Sandbox settings.
            environment: Environment variables with the secrets of the server: its bearer token
                and, where there is one, the password of Redis.
            port: Port to listen on; 0 for one of this node's own.
            workers: Number of server processes behind the port.
        """
        os.environ.update(environment)
        self._settings = settings
        self._token = environment[settings["token_env"]]
        self._fixed_port = port
        self._workers = workers
        # The same in every process on this node, so that clients find a server that comes back.
        self._usual_port = _PORTS[int(ray.get_runtime_context().get_node_id(), 16) % len(_PORTS)]
        self._server: EmbeddedServer | None = None
        self._failure = ""
        self._tried = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="sandbox-keeper", daemon=True)
        self._thread.start()

    def describe(self) -> Description:
        """Where the server is; waits until the first start has succeeded or failed."""
        self._tried.wait()
        server = self._server
        return {
            "url": server.url if server is not None and server.alive else None,
            "token": self._token,
            "settings": self._settings,
            "failure": self._failure,
        }

    def stop(self) -> None:
        """End the server and its sessions, for good."""
        self._stopping.set()
        if self._server is not None:
            self._server.close()
        self._thread.join()

    def _keep(self) -> None:
        host = ray.util.get_node_ip_address()
        pause = 1.0
        while not self._stopping.is_set():
            try:
                settings = SandboxSettings.model_validate(self._settings)
                port = self._fixed_port or self._free_port(host)
                server = start_server(settings, host=host, port=port, workers=self._workers)
            except Exception as error:
                logger.error("no sandbox server on %s: %s", host, error)
                self._failure = str(error)
                self._tried.set()
                self._stopping.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                continue
            self._server, self._failure, pause = server, "", 1.0
            self._usual_port = urlsplit(server.url).port or 0
            self._tried.set()
            if self._stopping.is_set():
                server.close()
            server.wait()
            if not self._stopping.is_set():
                logger.warning("the sandbox server at %s has died; starting another", server.url)
                self._failure = "its server has died and is being started again"

    def _free_port(self, host: str) -> int:
        """The usual port; 0 if somebody else keeps it. A predecessor may need a moment to end."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        deadline = time.monotonic() + _PORT_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_server((host, self._usual_port), family=family).close()
                return self._usual_port
            self._stopping.wait(0.1)
        return 0
