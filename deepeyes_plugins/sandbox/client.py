"""The asynchronous client of a sandbox server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import msgpack

from .contracts import ExecutionResult, Health, SandboxError, SandboxUnavailable
from .settings import SandboxSettings

logger = logging.getLogger(__name__)

_UPLOAD_ROUNDS = 4
_SLACK_SECONDS = 60.0
_KEEP_ALIVE_SECONDS = 60.0
_MAX_IDLE_CONNECTIONS = 256
_LOST = "The sandbox session is gone; its variables are lost."


class SandboxClient:
    """Talks to one server. Use it in one event loop, from as many tasks as you like.

    Example:
        async with SandboxClient(url) as client, await client.create_session([png]) as session:
            result = await session.execute("image_1.size", timeout=10)
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 120.0) -> None:
        """Prepares a client; connects on first use.

        Args:
            url: Base URL of the server.
            token: Bearer token; by default the one in $DEEPEYES_TOKEN_SANDBOX, if set.
            timeout: Seconds that the server may take for anything but running a cell.
        """
        if token is None:
            token = os.environ.get(SandboxSettings.model_fields["token_env"].default)
        headers = {"Accept": "application/x-msgpack, application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers=headers,
            timeout=timeout,
            transport=_Connections(),
            trust_env=False,
        )
        self._uploads: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; sessions live on at the server until closed or idle."""
        await self._http.aclose()

    async def health(self) -> Health:
        """Asks how the server is.

        Raises:
            SandboxUnavailable: It does not answer.
        """
        response = await self._send("GET", "/health")
        return Health(**response.json())

    async def create_session(self, images: Sequence[bytes] = ()) -> SandboxSession:
        """Opens a session.

        Args:
            images: Encoded image files (PNG, JPEG, WebP, ...), which the session's code sees as
                the PIL images image_1, image_2, and so on. Each is sent only if the server does
                not have it.

        Raises:
            SandboxUnavailable: The server cannot be reached or takes no more sessions.
            SandboxError: It refuses an image or the request.
        """
        by_digest = {hashlib.sha256(image).hexdigest(): image for image in images}
        digests = list(by_digest)
        if len(digests) != len(images):
            digests = [hashlib.sha256(image).hexdigest() for image in images]
        for _ in range(_UPLOAD_ROUNDS):
            response = await self._send("POST", "/v1/sessions", {"images": digests}, allow=404)
            if response.status_code != 404:
                return SandboxSession(self, response.json()["id"])
            missing = response.json().get("missing")
            if not missing:
                raise SandboxError(f"{self._url} is no sandbox server: it does not know sessions")
            await asyncio.gather(*(self._upload(d, by_digest[d]) for d in missing))
        raise SandboxUnavailable(
            f"the sandbox at {self._url} forgot images as fast as they came; raise image_cache_mb"
        )

    async def _upload(self, digest: str, image: bytes) -> None:
        """Sends an image once, however many sessions wait for it."""
        if digest not in self._uploads:
            upload = self._send("PUT", f"/v1/images/{digest}", image)
            task: asyncio.Task[None] = asyncio.ensure_future(_discard(upload))
            self._uploads[digest] = task
            task.add_done_callback(lambda _: self._uploads.pop(digest))
        await asyncio.shield(self._uploads[digest])

    async def _send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | bytes | None = None,
        *,
        allow: int = 0,
        timeout: float | None = None,
    ) -> httpx.Response:
        if isinstance(body, dict):
            # ASCII only, so that lone surrogates in generated code survive the way.
            body = json.dumps(body).encode("ascii")
        try:
            response = await self._http.request(
                method, path, content=body, timeout=timeout or self._timeout
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SandboxUnavailable(
                f"the sandbox at {self._url} does not answer ({type(error).__name__}: {error})"
            ) from error
        if response.is_success or response.status_code == allow:
            return response
        sentence = (
            f"the sandbox at {self._url} answered {response.status_code}: {_reason(response)}"
        )
        raise (SandboxUnavailable if response.status_code >= 500 else SandboxError)(sentence)


class SandboxSession:
    """One live Python session. Cells run one after another and share their variables."""

    def __init__(self, client: SandboxClient, session_id: str) -> None:
        """Takes up a session of that name; `SandboxClient.create_session` makes one."""
        self._client = client
        self._id = session_id
        self._closed = False

    @property
    def id(self) -> str:
        """The server's name for the session."""
        return self._id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def execute(self, code: str, timeout: float) -> ExecutionResult:
        """Runs one cell.

        Args:
            code: Python source, as in a Jupyter cell.
            timeout: Seconds after which the cell is interrupted.

        Returns:
            What the code did, also when it failed, hung or killed its process.

        Raises:
            SandboxUnavailable: The server did not answer.
        """
        response = await self._client._send(
            "POST",
            f"/v1/sessions/{self._id}/execute",
            {"code": code, "timeout": timeout},
            allow=404,
            timeout=timeout + _SLACK_SECONDS,
        )
        if response.status_code == 404:
            return ExecutionResult("lost", stderr=_LOST)
        return ExecutionResult(**msgpack.unpackb(response.content))

    async def interrupt(self) -> None:
        """Interrupts the running cell, if there is one."""
        await self._client._send("POST", f"/v1/sessions/{self._id}/interrupt", allow=404)

    async def close(self) -> None:
        """Ends the session, also in the middle of a cell; does nothing the second time."""
        if not self._closed:
            self._closed = True
            try:
                await self._client._send("DELETE", f"/v1/sessions/{self._id}")
            except SandboxUnavailable as error:
                # The session is gone with its server, or ends when it has been idle.
                logger.warning("a sandbox session was left open: %s", error)


class _Connections(httpx.AsyncBaseTransport):
    """As many connections as there are requests in flight, each a transport of its own.

    httpx's own pool looks through all its connections several times for every request: with
    hundreds of cells running that took three quarters of the client's processor time.
    """

    def __init__(self) -> None:
        self._idle: list[httpx.AsyncHTTPTransport] = []
        self._ssl = httpx.create_ssl_context(trust_env=False)

    def _connect(self) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(max_connections=1, keepalive_expiry=_KEEP_ALIVE_SECONDS)
        # Proxies of the environment are for the outside world.
        return httpx.AsyncHTTPTransport(verify=self._ssl, retries=2, limits=limits, trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        connection = self._idle.pop() if self._idle else self._connect()
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            await connection.aclose()
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Returning(response.stream, connection, self._idle)
        return response

    async def aclose(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.aclose()


class _Returning(httpx.AsyncByteStream):
    """A response body that gives its connection back when it is closed."""

    def __init__(
        self,
        body: httpx.AsyncByteStream,
        connection: httpx.AsyncHTTPTransport,
        idle: list[httpx.AsyncHTTPTransport],
    ) -> None:
        self._body = body
        self._connection = connection
        self._idle = idle

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._body.__aiter__()

    async def aclose(self) -> None:
        await self._body.aclose()
        if len(self._idle) < _MAX_IDLE_CONNECTIONS:
            self._idle.append(self._connection)
        else:
            await self._connection.aclose()


async def _discard(sending: Any) -> None:
    await sending


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
