"""Ray actor that runs the sandbox server of one node."""

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

from deepeyes_plugins.remote.retry import Backoff
from deepeyes_plugins.sandbox.embedded import EmbeddedServer, start_server
from deepeyes_plugins.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)

_PORT_SECONDS = 15.0
_BACKOFF = Backoff(1.0, 30.0)
# Below the system's ephemeral ports, above those of Ray's workers.
_PORTS = range(20_000, 30_000)


class Description(TypedDict):
    """Description of an actor's server.

    Attributes:
        url: Base URL; None while no server runs.
        token: Bearer token that the server requires.
        settings: The server's settings.
        failure: Why no server runs.
    """

    url: str | None
    token: str
    settings: dict[str, Any]
    failure: str


class ServerActor:
    """Actor that runs a sandbox server on its node and restarts it when it dies.

    The server ends with the process of the actor, which Ray restarts on the same node.
    """

    def __init__(self, settings: dict[str, Any], environment: dict[str, str], *, port: int) -> None:
        """Start the server in the background.

        Args:
            settings: Sandbox settings.
            environment: Environment variables with the server's secrets: its bearer token and the
                password of Redis, if any.
            port: Port to listen on; 0: a port derived from the node's ID.
        """
        os.environ.update(environment)
        self._settings = settings
        self._token = environment[settings["token_env"]]
        self._fixed_port = port
        # Derived from the node's ID, so that a restarted server keeps its URL.
        self._node_port = _PORTS[int(ray.get_runtime_context().get_node_id(), 16) % len(_PORTS)]
        self._server: EmbeddedServer | None = None
        self._failure = ""
        self._first_start_done = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run_server, name="sandbox-server", daemon=True)
        self._thread.start()

    def describe(self) -> Description:
        """Describe the server, once its first start has succeeded or failed."""
        self._first_start_done.wait()
        server = self._server
        return {
            "url": server.url if server is not None and server.alive else None,
            "token": self._token,
            "settings": self._settings,
            "failure": self._failure,
        }

    def stop(self) -> None:
        """Stop the server and its sessions, without a restart."""
        self._stopping.set()
        if self._server is not None:
            self._server.close()
        self._thread.join()

    def _run_server(self) -> None:
        host = ray.util.get_node_ip_address()
        failures = 0
        while not self._stopping.is_set():
            try:
                settings = SandboxSettings.model_validate(self._settings)
                port = self._fixed_port or self._free_port(host)
                server = start_server(settings, host=host, port=port)
            except Exception as error:
                logger.error("no sandbox server on %s: %s", host, error)
                self._failure = str(error)
                self._first_start_done.set()
                failures += 1
                self._stopping.wait(_BACKOFF.seconds(failures))
                continue
            self._server, self._failure, failures = server, "", 0
            self._node_port = urlsplit(server.url).port or 0
            self._first_start_done.set()
            if self._stopping.is_set():
                server.close()
            server.wait()
            if not self._stopping.is_set():
                logger.warning("the sandbox server at %s has died; restarting it", server.url)
                self._failure = "its server has died and is being restarted"

    def _free_port(self, host: str) -> int:
        """Return the node's port once a previous server has released it; 0 if it stays in use."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        deadline = time.monotonic() + _PORT_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_server((host, self._node_port), family=family).close()
                return self._node_port
            self._stopping.wait(0.1)
        return 0
