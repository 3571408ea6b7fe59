"""Worker processes behind one port: placement of sessions and images, relay of requests.

Each worker has its own kernels. A session ID begins with the number of its worker. Images are
placed by their hash and sessions by that of their first image, so that the rollouts of a prompt
share decoded pixels. A request that reaches another worker is relayed.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import httpx

WORKER_HEADER: Final = "x-sandbox-worker"
RELAYED_HEADER: Final = "x-sandbox-relayed"

_CONNECT_SECONDS = 2.0
_REQUEST_SECONDS = 10.0
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64)


class WorkerGone(Exception):
    """The worker does not respond."""


@cache
def _descriptor(folder: Path) -> int:
    return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


@dataclass(frozen=True)
class WorkerPool:
    """The workers of one server.

    Attributes:
        index: Number of this worker, from 0.
        count: Number of workers.
        folder: Folder of their sockets; None for a single worker.
    """

    index: int = 0
    count: int = 1
    folder: Path | None = None

    def socket(self, worker: int) -> Path:
        """Return the path of the socket on which a worker listens for the others."""
        assert self.folder is not None
        # Socket paths have at most 107 characters, so the folder's path is not used.
        return Path(f"/proc/self/fd/{_descriptor(self.folder)}/worker-{worker}.sock")

    def of_session(self, session_id: str) -> int:
        """Return the number of a session's worker."""
        number, dash, _ = session_id.partition("-")
        if dash and number.isdecimal() and len(number) < 6:
            return int(number) % self.count
        return zlib.crc32(session_id.encode("utf-8", "backslashreplace")) % self.count

    def of_image(self, digest: str) -> int:
        """Return the number of the worker on which an image is placed."""
        return zlib.crc32(digest.encode("utf-8", "backslashreplace")) % self.count

    @property
    def others(self) -> list[int]:
        """The numbers of all other workers."""
        return [worker for worker in range(self.count) if worker != self.index]


class Relay:
    """Relays requests to the other workers."""

    def __init__(self, pool: WorkerPool, token: str | None) -> None:
        self._token = token
        headers = {RELAYED_HEADER: str(pool.index)}
        self._clients = {
            worker: httpx.AsyncClient(
                base_url="http://worker",
                headers=headers,
                transport=httpx.AsyncHTTPTransport(uds=str(pool.socket(worker)), limits=_LIMITS),
                trust_env=False,
            )
            for worker in pool.others
        }

    async def request(
        self,
        worker: int,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        seconds: float = _REQUEST_SECONDS,
    ) -> httpx.Response:
        """Relay a request to a worker.

        Raises:
            WorkerGone: The worker has died or is being restarted.
        """
        authorization = {"authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            return await self._clients[worker].request(
                method,
                path,
                content=body,
                headers={**authorization, **(headers or {})},
                timeout=httpx.Timeout(seconds, connect=_CONNECT_SECONDS, pool=seconds),
            )
        except httpx.ConnectError as error:
            raise WorkerGone(f"worker {worker} cannot be reached") from error
        except httpx.HTTPError as error:
            raise WorkerGone(f"worker {worker} failed: {type(error).__name__}") from error

    async def get_all(self, path: str) -> list[httpx.Response]:
        """Send a GET request to all other workers; return the responses of those that respond."""
        requests = (self.request(worker, "GET", path) for worker in self._clients)
        answers: list[Any] = await asyncio.gather(*requests, return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, httpx.Response)]

    async def image(self, digest: str) -> bytes | None:
        """Request an image from the other workers."""
        for answer in await self.get_all(f"/v1/images/{digest}"):
            if answer.status_code == 200:
                return answer.content
        return None

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))
