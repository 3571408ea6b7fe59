"""Connection pool of the client, keyed by server and worker process."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import AsyncIterator

import httpx

WORKER = "sandbox_worker"
"""Request extension with the number of the worker process that the request is for."""

WORKER_HEADER = "x-sandbox-worker"
"""Response header with the number of the worker process that has the connection."""

_KEEP_ALIVE_SECONDS = 60.0
_MAX_IDLE = 256
# Detects a machine that is down within 35 seconds, also while a cell runs.
_SOCKET_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
]

_Idle = list[tuple[httpx.AsyncHTTPTransport, str | None]]


class Connections(httpx.AsyncBaseTransport):
    """Pool with one connection per concurrent request, each a transport of its own.

    httpx's own pool scans all its connections several times per request, which took three quarters
    of the client's CPU time with hundreds of running cells.

    A server may have several worker processes. A connection belongs to the worker that accepted
    it, which its responses name. A request for a certain worker is sent on an idle connection to
    that worker if there is one, which saves the relay between workers.
    """

    def __init__(self) -> None:

        self._idle: defaultdict[tuple[str, bytes], _Idle] = defaultdict(list)
        self._ssl = httpx.create_ssl_context(trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on an idle or new connection to its server."""
        idle = self._idle[request.url.scheme, request.url.netloc]
        connection = _take(idle, request.extensions.get(WORKER)) or self._connect()
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            await connection.aclose()
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        worker = response.headers.get(WORKER_HEADER)
        response.stream = _PooledStream(response.stream, connection, worker, idle)
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
            trust_env=False,  # Ignore the proxies of the environment.
        )


def _take(idle: _Idle, worker: str | None) -> httpx.AsyncHTTPTransport | None:
    """Take a connection to the worker, else the longest idle one, which spreads the load."""
    if not idle:
        return None
    if worker is None:
        return idle.pop(0)[0]
    position = next((n for n, (_, owner) in enumerate(idle) if owner == worker), 0)
    return idle.pop(position)[0]


class _PooledStream(httpx.AsyncByteStream):
    """Response body that returns its connection to the pool when it is closed."""

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
