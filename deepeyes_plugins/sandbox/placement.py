"""Placement of sessions on servers: locality, load and circuit breaker."""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit
from weakref import WeakSet

from deepeyes_plugins.remote.circuit import Circuit
from deepeyes_plugins.remote.retry import Backoff
from deepeyes_plugins.remote.single_flight import SingleFlight
from deepeyes_plugins.remote.urls import displayed, refuse_credentials
from deepeyes_plugins.sandbox.contracts import SandboxError

_BACKOFF = Backoff(0.5, 30.0)
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Server:
    """State of one server, as its client sees it.

    Attributes:
        url: Base URL.
        local: Whether it is on this machine.
        sessions: The client's open sessions on it.
        opening: Number of sessions that the client is creating on it.
        uploads: Image uploads in progress, by hash.
        circuit: Circuit breaker; while it is open, other servers are preferred.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.local = _is_local(url)
        self.sessions: WeakSet[object] = WeakSet()
        self.opening = 0
        self.uploads: SingleFlight[str, None] = SingleFlight()
        self.circuit = Circuit(1, _BACKOFF, service="sandbox")


def parse_urls(urls: str | Sequence[str]) -> list[Server]:
    """Parse base URLs; servers on this machine come first, else the order is kept.

    Args:
        urls: Base URLs; a string may hold several, separated by commas.

    Raises:
        SandboxError: There is no URL, or one is invalid.
    """
    strings = [urls] if isinstance(urls, str) else urls
    split = [url.strip().rstrip("/") for string in strings for url in string.split(",")]
    servers = [Server(url) for url in dict.fromkeys(filter(None, split))]
    if not servers:
        raise SandboxError(f"no URL of a sandbox server in {urls!r}")
    return sorted(servers, key=lambda server: not server.local)


def preferred(servers: Iterable[Server]) -> list[Server]:
    """Sort servers by preference for a new session.

    Criteria: circuit closed, on this machine, fewest sessions of this client; ties are random.
    """

    def rank(server: Server) -> tuple[bool, bool, int, float]:
        load = len(server.sessions) + server.opening
        return server.circuit.wait > 0, not server.local, load, random.random()

    return sorted(servers, key=rank)


def _is_local(url: str) -> bool:
    try:
        refuse_credentials(url, "sandbox.token_env")
        parsed = urlsplit(url)
        host = parsed.hostname if parsed.port != 0 else None
    except ValueError as error:
        name = displayed(url)
        raise SandboxError(f"{name!r} is not a URL of a sandbox server: {error}") from None
    if parsed.scheme not in ("http", "https") or not host:
        raise SandboxError(
            f"{displayed(url)!r} is not a URL of a sandbox server such as http://host:8080"
        )
    if host in ("localhost", socket.gethostname().lower()):
        return True
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return False  # Other names are not resolved, since DNS can be slow.
    try:
        # Only local addresses can be bound.
        with socket.socket(_FAMILIES[version], socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True
