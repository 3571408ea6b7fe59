"""Asynchronous client of the sandbox: placement, image upload and failover."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Self, TypeVar

import aiohttp
import msgpack
from cachetools import LRUCache

from deepeyes_plugins.remote.http import open_session, reason_of
from deepeyes_plugins.remote.redaction import protect, redact_body
from deepeyes_plugins.remote.service import Reply
from deepeyes_plugins.sandbox.contracts import (
    ExecutionResult,
    Health,
    SandboxError,
    SandboxUnavailable,
)
from deepeyes_plugins.sandbox.placement import Server, parse_urls, preferred
from deepeyes_plugins.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MSGPACK = "application/x-msgpack"
_CONNECT_SECONDS = 10.0
_ROOM_WAIT_SECONDS = 1.0
_UPLOAD_ROUNDS = 4
_OVERHEAD_SECONDS = 60.0
_LARGE_IMAGE_BYTES = 1 << 18
_DIGEST_CACHE_BYTES = 64 << 20
_SESSION_LOST = "The sandbox session is gone; its variables are lost."
_ALREADY_RAN = (
    "The cell ran, but its output was lost when the sandbox server failed. Its variables are there."
)


class _Unreachable(SandboxUnavailable):
    """A server does not respond."""


class _ConnectionBroken(_Unreachable):
    """A connection broke before its response was complete."""


class SandboxClient:
    """Client of one or several servers, for any number of tasks of one event loop.

    A new session goes to a server on this machine if one has room, else to the server with the
    fewest sessions of this client, and stays there. If its server fails and others share its Redis,
    its current or next cell runs on one of those.

    Example:
        async with SandboxClient(url) as client, await client.create_session([png]) as session:
            result = await session.execute("image_1.size", timeout=10)
    """

    def __init__(
        self, urls: str | Sequence[str], *, token: str | None = None, timeout: float = 120.0
    ) -> None:
        """Initialize the client; it connects on first use.

        Args:
            urls: Base URLs of the servers; a string may hold several, separated by commas.
            token: Bearer token; by default the one in $DEEPEYES_TOKEN_SANDBOX, if set.
            timeout: Time limit in seconds of every request except for running a cell.

        Raises:
            SandboxError: There is no URL, or one is invalid.
        """
        if token is None:
            token = os.environ.get(SandboxSettings.model_fields["token_env"].default)
        headers = {"Accept": f"{_MSGPACK}, application/json"}
        protect(token)
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._servers = parse_urls(urls)
        self._timeout = timeout
        self._headers = headers
        self._http: aiohttp.ClientSession | None = None
        self._digests = _DigestCache()

    @property
    def urls(self) -> tuple[str, ...]:
        """Base URLs of the servers, those on this machine first."""
        return tuple(server.url for server in self._servers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; open sessions stay on the server until they time out."""
        if self._http is not None:
            await self._http.close()

    async def health(self) -> Health:
        """Return the health of the first server that responds.

        Raises:
            SandboxUnavailable: No server responds.
            SandboxError: The server requires a token for it.
        """

        async def ask(server: Server) -> Health:
            response = await self._send(server, "GET", "/health")
            if set(_fields(server, response)) == {"status"}:
                raise SandboxError(
                    f"the sandbox at {server.url} requires its bearer token: set the variable that "
                    "sandbox.token_env names (by default DEEPEYES_TOKEN_SANDBOX)"
                )
            return _parse_as(Health, server, response)

        return await self._first_available(self._servers, ask, self._timeout)

    async def create_session(self, images: Sequence[bytes] = ()) -> SandboxSession:
        """Create a session.

        Args:
            images: Encoded image files (PNG, JPEG, WebP, ...). The session's code sees them as the
                PIL images ``image_1``, ``image_2``, and so on. An image is uploaded only if the
                server does not have it.

        Raises:
            SandboxUnavailable: No server can be reached and has room for the session.
            SandboxError: A server rejects an image or the request.
        """
        digests = [await self._digests.of(image) for image in images]
        by_digest = dict(zip(digests, images, strict=True))

        async def create(server: Server) -> SandboxSession:
            server.opening += 1
            try:
                return await self._create_at(server, digests, by_digest)
            finally:
                server.opening -= 1

        return await self._first_available(preferred(self._servers), create, self._timeout)

    async def _create_at(
        self, server: Server, digests: list[str], by_digest: dict[str, bytes]
    ) -> SandboxSession:
        request_body: dict[str, Any] = {"images": digests}
        if len(self._servers) > 1:
            request_body["wait"] = _ROOM_WAIT_SECONDS  # Another server may have room now.
        for _ in range(_UPLOAD_ROUNDS):
            response = await self._send(server, "POST", "/v1/sessions", request_body, allow=(404,))
            answer = _fields(server, response)
            if "id" in answer:
                return SandboxSession(self, answer["id"], server)
            missing = answer.get("missing")
            if not missing:
                raise SandboxError(f"{server.url} is not a sandbox server: it has no /v1/sessions")
            await asyncio.gather(*(self._upload(server, d, by_digest[d]) for d in missing))
        raise SandboxUnavailable(
            f"the sandbox at {server.url} drops images before the session is created; raise its "
            "image_cache_mb"
        )

    async def _upload(self, server: Server, digest: str, image: bytes) -> None:
        """Upload an image to a server, once for all sessions that wait for it."""

        async def upload() -> None:
            await self._send(server, "PUT", f"/v1/images/{digest}", image)

        await server.uploads.run(digest, upload)

    async def _first_available(
        self,
        servers: Sequence[Server],
        ask: Callable[[Server], Awaitable[T]],
        timeout: float,
        failures: Sequence[SandboxUnavailable] = (),
    ) -> T:
        """Try one server after another until one succeeds, each with a share of the time left."""
        failures = list(failures)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        for tried, server in enumerate(servers):
            try:
                share = (deadline - loop.time()) / (len(servers) - tried)
                with server.circuit.attempt(even_if_open=True):
                    async with _limit(server, share):
                        return await ask(server)
            except SandboxUnavailable as error:
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        raise SandboxUnavailable("no sandbox server is available: " + "; ".join(map(str, failures)))

    async def _send(
        self,
        server: Server,
        method: str,
        path: str,
        body: dict[str, Any] | bytes | None = None,
        *,
        allow: Sequence[int] = (),
        timeout: float | None = None,
    ) -> Reply:
        """Send a request, with one retry if its connection breaks.

        Args:
            server: Receiver.
            method: HTTP method.
            path: Path below the server's base URL.
            body: JSON or bytes.
            allow: Status codes of errors that the caller handles.
            timeout: Seconds until the response must be complete.

        Raises:
            _Unreachable: The server does not respond.
            SandboxUnavailable: The server reports an error of its own (5xx).
            SandboxError: The server rejects the request (4xx).
        """
        if isinstance(body, dict):
            # ASCII only, so that lone surrogates in generated code can be encoded.
            body = json.dumps(body).encode("ascii")
        request = partial(self._request, server, method, path, body, timeout or self._timeout)
        try:
            response = await request()
        except _ConnectionBroken:
            response = await request()
        if response.status < 300 or response.status in allow:
            return response
        message = f"the sandbox at {server.url} answered {response.status}: {_reason(response)}"
        raise (SandboxUnavailable if response.status >= 500 else SandboxError)(message)

    def _session(self) -> aiohttp.ClientSession:
        """Return the connection pool, created by the first request."""
        if self._http is None:
            self._http = open_session(
                tls=any(url.startswith("https") for url in self.urls),
                headers=self._headers,
                connect_timeout=_CONNECT_SECONDS,
            )
        return self._http

    async def _request(
        self,
        server: Server,
        method: str,
        path: str,
        body: bytes | None,
        timeout: float,
    ) -> Reply:
        body_type = "application/json" if method == "POST" else "application/octet-stream"
        try:
            async with (
                _limit(server, timeout),
                self._session().request(
                    method,
                    server.url + path,
                    data=None if body is None else io.BytesIO(body),
                    headers={"Content-Type": body_type} if body is not None else {},
                    allow_redirects=False,
                ) as response,
            ):
                content = redact_body(await response.read())
                return Reply(f"{method} {path}", response.status, response.headers, content)
        except aiohttp.InvalidURL as error:
            raise SandboxError(f"{server.url!r} cannot be connected to: {error}") from None
        except aiohttp.ClientError as error:
            connected = not isinstance(
                error, aiohttp.ClientConnectorError | aiohttp.ServerTimeoutError
            )
            raise (_ConnectionBroken if connected else _Unreachable)(
                f"the sandbox at {server.url} does not answer ({reason_of(error)})"
            ) from None


class SandboxSession:
    """Python session. Cells run one after another and share their variables."""

    def __init__(self, client: SandboxClient, session_id: str, server: Server) -> None:
        self._client = client
        self._id = session_id
        self._server = server
        self._server.sessions.add(self)
        self._lock = asyncio.Lock()
        self._cells = 0
        self._closed = False

    @property
    def id(self) -> str:
        """Session ID."""
        return self._id

    @property
    def server(self) -> str:
        """Base URL of the session's server."""
        return self._server.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def execute(self, code: str, timeout: float) -> ExecutionResult:
        """Run a cell after all earlier ones.

        If the session's server fails, another one that shares its Redis restores the session and
        runs the cell; what could not be restored is in the result's ``lost_names``. A cell that the
        failed server had run already does not run twice: the outcome is "error" with the error
        name "SandboxFailover".

        Args:
            code: Python source, as in a Jupyter cell.
            timeout: Seconds after which the cell is interrupted.

        Returns:
            The result, also if the code failed, hung or killed its process.

        Raises:
            SandboxUnavailable: Neither the session's server nor any other responds.
        """
        async with self._lock:
            if self._closed:
                return ExecutionResult("lost", stderr=_SESSION_LOST)
            cell = {"code": code, "timeout": timeout, "cell": self._cells}
            limit = timeout + _OVERHEAD_SECONDS
            # A cell whose request fails counts too, since the server may have run it.
            self._cells += 1
            try:
                return await self._with_failover(
                    lambda server: self._execute_at(server, cell, limit), limit
                )
            except SandboxUnavailable:
                raise
            except SandboxError:
                self._cells -= 1  # The server rejected it.
                raise

    async def _execute_at(
        self, server: Server, cell: dict[str, Any], limit: float
    ) -> ExecutionResult:
        response = await self._send(
            "POST", "/execute", cell, allow=(404, 409), timeout=limit, server=server
        )
        if response.status == 404:
            self._mark_closed()
            return ExecutionResult("lost", stderr=_SESSION_LOST)
        if server is not self._server:
            logger.warning("session %s moved from %s to %s", self.id, self.server, server.url)
            self._server.sessions.discard(self)
            self._server = server
            self._server.sessions.add(self)
        if response.status == 409:
            return ExecutionResult("error", stderr=_ALREADY_RAN, error_name="SandboxFailover")
        return _parse_as(ExecutionResult, server, response)

    async def interrupt(self) -> None:
        """Interrupt the running cell, if any.

        Raises:
            SandboxUnavailable: The session's server does not respond.
        """
        await self._send("POST", "/interrupt", allow=(404,))

    async def evict(self) -> None:
        """Evict the session after its running cell: its memory is free until its next cell.

        Raises:
            SandboxUnavailable: The session's server does not respond, or cannot evict it now.
        """
        async with self._lock:
            await self._send("POST", "/evict", allow=(404,))

    async def close(self) -> None:
        """End the session, even during a cell; idempotent."""
        if not self._closed:
            self._mark_closed()
            try:
                # If its server is down, another one deletes the session's snapshot in Redis.
                await self._with_failover(
                    lambda server: self._send("DELETE", "", server=server), self._client._timeout
                )
            except SandboxUnavailable as error:
                # The session has died with its server, or will end at its idle timeout.
                logger.warning("a sandbox session could not be closed: %s", error)

    async def _with_failover(self, ask: Callable[[Server], Awaitable[T]], limit: float) -> T:
        """Send a request to the session's server, or to others if that one is unreachable.

        Args:
            ask: Sends the request to a given server.
            limit: Time limit in seconds; doubled for the retry after a broken connection.
        """
        try:
            return await ask(self._server)
        except _Unreachable as error:
            others = [other for other in self._client._servers if other is not self._server]
            if not others:
                raise
            self._server.circuit.fail(error)
            total = 2 * limit * len(others)
            return await self._client._first_available(preferred(others), ask, total, [error])

    def _mark_closed(self) -> None:
        self._closed = True
        self._server.sessions.discard(self)

    async def _send(
        self,
        method: str,
        action: str,
        body: dict[str, Any] | None = None,
        *,
        allow: Sequence[int] = (),
        timeout: float | None = None,
        server: Server | None = None,
    ) -> Reply:
        return await self._client._send(
            server or self._server,
            method,
            f"/v1/sessions/{self._id}{action}",
            body,
            allow=allow,
            timeout=timeout,
        )


class _DigestCache:
    """Cache of the SHA-256 hashes of large images, which are computed in threads.

    The rollouts of a prompt pass the same object, so the key is its identity. An identity is unique
    only while the object exists, so the cache keeps references to its images.
    """

    def __init__(self) -> None:
        self._recent: LRUCache[int, tuple[bytes, asyncio.Task[str]]] = LRUCache(
            _DIGEST_CACHE_BYTES, getsizeof=lambda entry: len(entry[0])
        )

    async def of(self, image: bytes) -> str:
        if len(image) < _LARGE_IMAGE_BYTES:
            return _sha256(image)
        if len(image) > self._recent.maxsize:
            return await asyncio.to_thread(_sha256, image)
        if id(image) not in self._recent:
            hashing = asyncio.create_task(asyncio.to_thread(_sha256, image))
            self._recent[id(image)] = image, hashing
        _, hashing = self._recent[id(image)]
        return await asyncio.shield(hashing)


def _sha256(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


@contextlib.asynccontextmanager
async def _limit(server: Server, seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise _Unreachable(
            f"the sandbox at {server.url} did not answer within {seconds:.3g} s"
        ) from error


def _fields(server: Server, response: Reply) -> dict[str, Any]:
    packed = response.headers.get("content-type") == _MSGPACK
    try:
        return dict((msgpack.unpackb if packed else json.loads)(response.body))
    except (ValueError, TypeError) as error:
        raise SandboxError(f"{server.url} is not a sandbox server: {error}") from error


def _parse_as(kind: type[T], server: Server, response: Reply) -> T:
    """Parse a response into a dataclass; fields that a newer server adds are ignored."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    fields = _fields(server, response)
    try:
        return kind(**{name: value for name, value in fields.items() if name in known})
    except TypeError as error:
        raise SandboxError(f"{server.url} is not a sandbox server: {error}") from error


def _reason(response: Reply) -> str:
    try:
        return str(json.loads(response.body)["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
