"""Embedded sandbox server: started on demand, shared by this process tree, ends with it."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import secrets
import selectors
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

from deepeyes_plugins.sandbox.contracts import SandboxUnavailable
from deepeyes_plugins.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)

URL_VARIABLE = "DEEPEYES_SANDBOX_URL"

_STOP_SECONDS = 15.0
_lock = threading.Lock()
_shared: EmbeddedServer | None = None


class EmbeddedServer(contextlib.AbstractContextManager["EmbeddedServer"]):
    """Sandbox server that ends with this process.

    Attributes:
        url: Base URL.
        token: Bearer token that clients must send.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str, token: str) -> None:
        self.url = url
        self.token = token
        self._process = process
        self._owner = os.getpid()

    @property
    def pid(self) -> int:
        """Process ID of the server."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the server is running."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Wait until the server has ended."""
        self._process.wait()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server and its sessions; idempotent, and without effect in a forked child."""
        if os.getpid() == self._owner:
            _stop(self._process)


def start_server(
    settings: SandboxSettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    workers: int | None = None,
) -> EmbeddedServer:
    """Start a server and wait until a first session has worked.

    The token comes from the environment variable that the settings name; without one, a new token
    is generated.

    Args:
        settings: Limits of the sessions; by default the default settings.
        host: Address of this machine to listen on, and host of the URL.
        port: Port to listen on; 0 picks a free one.
        workers: Deprecated and without effect.

    Raises:
        SandboxUnavailable: The server did not start; the message says why.
    """
    if workers is not None:
        warnings.warn(
            "start_server(workers=…) is deprecated and has no effect: a server is one process; "
            "start several servers and give clients all URLs",
            FutureWarning,
            stacklevel=2,
        )
    settings = settings or SandboxSettings()
    token = os.environ.get(settings.token_env) or secrets.token_urlsafe(24)
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    reading, writing = os.pipe()
    with open(reading, "rb") as announcements:
        try:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", __package__ or "deepeyes_plugins.sandbox"),
                    *("--host", host, "--port", str(port)),
                    *("--log-level", "warning"),
                    *("--settings", settings.model_dump_json()),
                    *("--announce-fd", str(writing), "--parent", str(os.getpid())),
                ],
                pass_fds=[writing],
                env=os.environ | {settings.token_env: token, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C at the terminal is for this process, which then stops the server.
                start_new_session=True,
            )
        finally:
            os.close(writing)
        message = _announcement(announcements.fileno(), settings.startup_timeout)
    if "port" not in message:
        _stop(process)
        raise SandboxUnavailable(f"the embedded sandbox did not start: {message['failure']}")
    name = f"[{host}]" if ":" in host else host
    return EmbeddedServer(process, f"http://{name}:{message['port']}", token)


def ensure_server(settings: SandboxSettings | None = None) -> str:
    """Return the URL of a sandbox; start one for this process tree if there is none.

    The settings' URL takes precedence, then $DEEPEYES_SANDBOX_URL. A server that is started here is
    shared by all callers in this process and ends with it. Child processes find its URL and token
    in their environment.

    Args:
        settings: URL of the sandbox, or how to start one; by default the default settings.

    Raises:
        SandboxUnavailable: There is no URL, and no server could be started.
    """
    global _shared
    settings = settings or SandboxSettings()
    if settings.url:
        return settings.url
    with _lock:
        in_use = _shared is not None and os.environ.get(URL_VARIABLE) == _shared.url
        if _shared is not None and in_use and _shared._owner == os.getpid() and not _shared.alive:
            logger.error("the embedded sandbox server has died; starting another")
            del os.environ[URL_VARIABLE]
        url = os.environ.get(URL_VARIABLE)
        if url:
            return url
        _shared = start_server(settings)
        atexit.register(_shared.close)
        os.environ[URL_VARIABLE] = _shared.url
        os.environ[settings.token_env] = _shared.token
        return _shared.url


def _announcement(pipe: int, timeout: float) -> dict[str, object]:
    """Read the line that the server writes when it is ready or has failed."""
    deadline = time.monotonic() + timeout
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return {"failure": f"it was not ready within {timeout:g} s"}
            chunk = os.read(pipe, 1 << 16)
            if not chunk:
                return {"failure": "its process exited at once; see its log above"}
            line += chunk
    message: dict[str, object] = json.loads(line)
    return message


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
        return
    process.kill()
    process.wait()
