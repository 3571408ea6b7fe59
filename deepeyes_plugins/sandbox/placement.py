"""Which of several servers a client asks first."""

from __future__ import annotations

import ipaddress
import logging
import random
import socket
import time
from collections.abc import Iterable, Sequence
from weakref import WeakSet

import httpx

from deepeyes_plugins.remote.single_flight import SingleFlight
from deepeyes_plugins.sandbox.contracts import SandboxError

logger = logging.getLogger(__name__)

_FIRST_REST_SECONDS = 0.5
_LONGEST_REST_SECONDS = 30.0
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Server:
    """What a client knows of one server.

    Attributes:
        url: Base URL.
        local: Whether it is on this machine.
        sessions: The client's open sessions there.
        opening: Number of sessions that the client is opening there.
        uploads: Images on their way to it, by hash.
    """

    def __init__(self, url: str) -> None:
        """Start with the best opinion of the server."""
        self.url = url
        self.local = _is_local(url)
        self.sessions: WeakSet[object] = WeakSet()
        self.opening = 0
        self.uploads: SingleFlight[str, None] = SingleFlight()
        self._rest = 0.0
        self._rests_until = 0.0

    @property
    def resting(self) -> bool:
        """Whether it failed and others should be asked before it.

        After a while one session at a time finds out whether it works again.
        """
        being_tried = self._rest > 0 and self.opening > 0
        return being_tried or time.monotonic() < self._rests_until

    def failed(self, reason: SandboxError) -> None:
        """Let others go before it for a while, which grows from failure to failure."""
        if time.monotonic() >= self._rests_until:
            self._rest = min(2 * self._rest or _FIRST_REST_SECONDS, _LONGEST_REST_SECONDS)
            self._rests_until = time.monotonic() + self._rest
            logger.warning("for %g s others are asked first: %s", self._rest, reason)

    def worked(self) -> None:
        """Forget earlier failures, now that it has taken a session."""
        self._rest = 0.0
        self._rests_until = 0.0


def parse_urls(urls: str | Sequence[str]) -> list[Server]:
    """Make the servers of some URLs, those of this machine first, else in the order given.

    Args:
        urls: Base URLs; a string may hold several, separated by commas.

    Raises:
        SandboxError: There is none, or one is no URL.
    """
    strings = [urls] if isinstance(urls, str) else urls
    split = [url.strip().rstrip("/") for string in strings for url in string.split(",")]
    servers = [Server(url) for url in dict.fromkeys(filter(None, split))]
    if not servers:
        raise SandboxError(f"there is no URL of a sandbox server in {urls!r}")
    return sorted(servers, key=lambda server: not server.local)


def preferred(servers: Iterable[Server]) -> list[Server]:
    """Servers in the order in which to ask them for something new.

    Those that work come first; among them those of this machine; among them those with the fewest
    sessions of this client, by chance where several have as few.
    """

    def rank(server: Server) -> tuple[bool, bool, int, float]:
        load = len(server.sessions) + server.opening
        return server.resting, not server.local, load, random.random()

    return sorted(servers, key=rank)


def _is_local(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SandboxError(f"{url!r} is no URL of a sandbox server: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SandboxError(f"{url!r} is no URL of a sandbox server such as http://host:8080")
    if parsed.host in ("localhost", socket.gethostname()):
        return True
    try:
        version = ipaddress.ip_address(parsed.host).version
    except ValueError:
        return False  # Other names are not looked up, since that can take long.
    try:
        # Only addresses of this machine can be bound.
        with socket.socket(_FAMILIES[version], socket.SOCK_DGRAM) as probe:
            probe.bind((parsed.host, 0))
    except OSError:
        return False
    return True
