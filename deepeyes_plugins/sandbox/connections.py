"""Connection pool of the client, keyed by server and worker process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import aiohttp

from deepeyes_plugins.remote.http import open_session
from deepeyes_plugins.remote.service import Reply

WORKER_HEADER = "x-sandbox-worker"
"""Response header with the number of the worker process that has the connection."""

_CONNECT_SECONDS = 10.0
_MAX_IDLE = 256

_Idle = list[tuple[aiohttp.ClientSession, str | None]]


class Connections:
    """Pool with one connection per concurrent request, each a session of its own.

    A server may have several worker processes. A connection belongs to the worker that accepted
    it, which its responses name. A request for a certain worker is sent on an idle connection to
    that worker if there is one, which saves the relay between workers.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Initialize without connecting; ``headers`` are sent with every request."""
        self._headers = headers
        self._idle: defaultdict[str, _Idle] = defaultdict(list)

    async def request(
        self, method: str, server: str, path: str, body: bytes | None, worker: str | None
    ) -> Reply:
        """Send a request on an idle or new connection to its server.

        Args:
            method: HTTP method.
            server: Base URL of the server.
            path: Path below it.
            body: Body, if any.
            worker: The worker process that the request is for, if known.

        Raises:
            aiohttp.ClientError: The server cannot be reached, or the connection broke.
        """
        idle = self._idle[server]
        session = _take(idle, worker) or open_session(
            tls=server.startswith("https"),
            headers=self._headers,
            connect_timeout=_CONNECT_SECONDS,
        )
        try:
            async with session.request(
                method, server + path, data=body, allow_redirects=False
            ) as response:
                content = await response.read()
        except BaseException:
            await session.close()
            raise
        if len(idle) < _MAX_IDLE:
            idle.append((session, response.headers.get(WORKER_HEADER)))
        else:
            await session.close()
        return Reply(f"{method} {server}{path}", response.status, response.headers, content)

    async def close(self) -> None:
        """Close the idle connections."""
        for idle in self._idle.values():
            while idle:
                await idle.pop()[0].close()


def _take(idle: _Idle, worker: str | None) -> aiohttp.ClientSession | None:
    """Take a connection to the worker, else the longest idle one, which spreads the load."""
    if not idle:
        return None
    position = 0
    if worker is not None:
        position = next((n for n, (_, owner) in enumerate(idle) if owner == worker), 0)
    return idle.pop(position)[0]
