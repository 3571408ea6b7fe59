"""Keep-alive connections of a client, by server and by the worker process behind them."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import AsyncIterator

import httpx

WORKER = "sandbox_worker"
"""Name of the request extension that says which worker process should answer."""

WORKER_HEADER = "x-sandbox-worker"
"""Name of the response header that says which worker process has the connection."""

_KEEP_ALIVE_SECONDS = 60.0
_MAX_IDLE = 256
# A machine that vanished without a word is noticed in 35 seconds, also while a cell runs.
_SOCKET_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
]

_Idle = list[tuple[httpx.AsyncHTTPTransport, str | None]]


class Connections(httpx.AsyncBaseTransport):
    """As many connections as there are requests in flight, each a transport of its own.

    httpx's own pool looks through all its connections several times for every request: with
    hundreds of cells running that took three quarters of the client's processor time.

    A server may have several worker processes; a connection stays with the one that accepted it,
    and its answers say which. Where a request names the worker that it is for, it gets a connection
    to that worker if one is idle, so that the server need not pass it on.
    """

    def __init__(self) -> None:
        """Start with no connection."""
        self._idle: defaultdict[tuple[str, bytes], _Idle] = defaultdict(list)
        self._ssl = httpx.create_ssl_context(trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on an idle connection to its server, or on a new one."""
        idle = self._idle[request.url.scheme, request.url.netloc]
        connection = _take(idle, request.extensions.get(WORKER)) or self._connect()
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            await connection.aclose()
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        worker = response.headers.get(WORKER_HEADER)
        response.stream = _Returning(response.stream, connection, worker, idle)
        return response

    async def aclose(self) -> None:
        """Close the idle connections."""
        for idle in self._idle.values():
            while idle:
                await idle.pop()[0].aclose()

    def _connect(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(
            verify=self._ssl,
            limits=httpx.Limits(max_connections=1, keepalive_expiry=_KEEP_ALIVE_SECONDS),
            socket_options=_SOCKET_OPTIONS,
            trust_env=False,  # Proxies of the environment are for the outside world.
        )


def _take(idle: _Idle, worker: str | None) -> httpx.AsyncHTTPTransport | None:
    """Take a connection to the worker, else the one idle longest, so that all workers get work."""
    if not idle:
        return None
    if worker is None:
        return idle.pop(0)[0]
    position = next((n for n, (_, owner) in enumerate(idle) if owner == worker), 0)
    return idle.pop(position)[0]


class _Returning(httpx.AsyncByteStream):
    """A response body that gives its connection back when it is closed."""

    def __init__(
        self,
        body: httpx.AsyncByteStream,
        connection: httpx.AsyncHTTPTransport,
        worker: str | None,
        idle: _Idle,
    ) -> None:
        self._body = body
        self._connection = connection
        self._worker = worker
        self._idle = idle

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._body.__aiter__()

    async def aclose(self) -> None:
        await self._body.aclose()
        if len(self._idle) < _MAX_IDLE:
            self._idle.append((self._connection, self._worker))
        else:
            await self._connection.aclose()
