"""HTTP connections of uvicorn with limits on their number, and on size and time of requests."""

from __future__ import annotations

import asyncio
import resource
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

_MOST_CONNECTIONS = 4096


@dataclass(frozen=True)
class Limits:
    """Limits of a server's connections.

    Attributes:
        head_bytes: Maximum size of a request's head.
        head_seconds: Time for a request's head, and for the first one after a connection opens.
        body_seconds: Time for a request's body.
        connections: Maximum number of connections. Beyond it, the oldest idle one is closed.
        connections_per_client: The same for each address, so that one cannot use up all.
    """

    head_bytes: int = 256 << 10
    head_seconds: float = 10.0
    body_seconds: float = 120.0
    connections: int = _MOST_CONNECTIONS
    connections_per_client: int = _MOST_CONNECTIONS * 3 // 4

    @classmethod
    def of_process(cls) -> Limits:
        """Return the limits that this process's file descriptors allow, after raising theirs.

        Each session and each connection needs descriptors; half of them are for connections.
        """
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        most = _MOST_CONNECTIONS
        if hard != resource.RLIM_INFINITY:
            most = max(4, min(most, hard // 2))
        return cls(connections=most, connections_per_client=most * 3 // 4)


@dataclass
class _Open:
    """Open connections of one server, in the order in which they were opened, by client."""

    by_client: dict[str, dict[BoundedHttp, None]] = field(default_factory=dict)

    def add(self, connection: BoundedHttp, limits: Limits) -> bool:
        """Add a connection and close an idle one if there are too many; return whether it may stay.

        The idle connection is one of the same client, so that a client with many connections
        costs no other one its own.
        """
        own = self.by_client.setdefault(connection.address, {})
        full = sum(map(len, self.by_client.values())) >= limits.connections
        stays = True
        if full or len(own) >= limits.connections_per_client:
            largest = max(self.by_client.values(), key=len) if full else own
            idle = next((one for one in (*own, *largest) if one.is_idle), None)
            stays = idle is not None
            if idle is not None:
                self.remove(idle)
                idle.transport.close()
        if stays:
            self.by_client.setdefault(connection.address, {})[connection] = None
        return stays

    def remove(self, connection: BoundedHttp) -> None:
        """Forget a connection."""
        own = self.by_client.get(connection.address, {})
        own.pop(connection, None)
        if not own:
            self.by_client.pop(connection.address, None)


class BoundedHttp(HttpToolsProtocol):
    """HTTP connection whose requests must be complete in time; :func:`bounded` sets its limits."""

    limits = Limits()
    open = _Open()

    _in_head = False
    _head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """Address of the client; empty for a Unix socket."""
        return self.client[0] if self.client else ""

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered, and no body is being received."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or refuse it if there are too many."""
        super().connection_made(transport)
        if self.open.add(self, self.limits):
            self._expect_within(self.limits.head_seconds)
        else:
            self._refuse(503, "There are too many connections to this server.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._expect_within(None)
        self.open.remove(self)
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep a half-closed connection open until its request is answered."""
        if self.is_idle or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """Count the bytes and the time of a new request's head from zero."""
        self._in_head, self._head_bytes = True, 0
        self._expect_within(self.limits.head_seconds)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Wait for the body, whose size the handlers limit."""
        self._in_head = False
        self._expect_within(self.limits.body_seconds)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop waiting: the request is complete."""
        self._expect_within(None)
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, or reject a request whose head is too large."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head_bytes:
                self._refuse(431, "The headers of this request are too large.")
        elif self._deadline is None and self.is_idle and self.timeout_keep_alive_task is None:
            # Bytes that begin no request, such as empty lines.
            self._expect_within(self.limits.head_seconds)

    def _expect_within(self, seconds: float | None) -> None:
        """Close the connection unless this is called again in time; ``None`` for no limit."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = (
            None if seconds is None else self.loop.call_later(seconds, self._close_late)
        )

    def _close_late(self) -> None:
        if self._in_head or not self.is_idle:
            self._refuse(408, "This request was not complete in time.")
        else:
            self.transport.close()

    def _refuse(self, status: int, reason: str) -> None:
        if not self.transport.is_closing():
            head = f"content-type: text/plain\r\ncontent-length: {len(reason)}\r\n"
            answer = f"{head}connection: close\r\n\r\n{reason}".encode("ascii")
            self.transport.write(STATUS_LINE[status] + answer)
            self.transport.close()


def bounded(limits: Limits) -> type[Any]:
    """Return the protocol class of one server with these limits."""
    return type("BoundedHttp", (BoundedHttp,), {"limits": limits, "open": _Open()})
