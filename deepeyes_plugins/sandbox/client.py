"""The asynchronous client of one or several sandbox servers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgpack
from cachetools import LRUCache

from deepeyes_plugins.sandbox.connections import WORKER, WORKER_HEADER, Connections
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
_SPILL_SECONDS = 1.0
_UPLOAD_ROUNDS = 4
_CONNECT_SECONDS = 10.0
_SLACK_SECONDS = 60.0
_LARGE_IMAGE_BYTES = 1 << 18
_REMEMBERED_IMAGE_BYTES = 64 << 20
_LOST = "The sandbox session is gone; its variables are lost."
_ALREADY_RAN = (
    "The cell ran, but its output was lost when the sandbox server failed. Its variables are there."
)


class _Unreachable(SandboxUnavailable):
    """A server did not answer."""


class _Broken(_Unreachable):
    """A connection broke before its answer was complete."""


_BREAKS = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)


class SandboxClient:
    """Talks to one or several servers. Use it in one event loop, from as many tasks as you like.

    A new session goes to a server of this machine where there is one that takes it, else to the
    server with the fewest sessions of this client. It stays there. If its server fails and others
    share a Redis with it, its next cell, or the one that was running, runs on another of them.

    Example:
        async with SandboxClient(url) as client, await client.create_session([png]) as session:
            result = await session.execute("image_1.size", timeout=10)
    """

    def __init__(
        self, urls: str | Sequence[str], *, token: str | None = None, timeout: float = 120.0
    ) -> None:
        """Prepare a client; connects on first use.

        Args:
            urls: Base URLs of the servers; a string may hold several, separated by commas.
            token: Bearer token; by default the one in $DEEPEYES_TOKEN_SANDBOX, if set.
            timeout: Seconds that anything but running a cell may take.

        Raises:
            SandboxError: There is no URL, or one that is wrong.
        """
        if token is None:
            token = os.environ.get(SandboxSettings.model_fields["token_env"].default)
        headers = {"Accept": f"{_MSGPACK}, application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._servers = parse_urls(urls)
        self._timeout = timeout
        self._http = httpx.AsyncClient(
            headers=headers,
            # How long an answer may take is limited for each request as a whole.
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            transport=Connections(),
            trust_env=False,
        )
        self._digests = _Digests()

    @property
    def urls(self) -> tuple[str, ...]:
        """Base URLs of the servers, those of this machine first."""
        return tuple(server.url for server in self._servers)

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
        """Close the connections; sessions live on at the server until closed or idle."""
        await self._http.aclose()

    async def health(self) -> Health:
        """Ask how the server is; of several, the first that answers.

        Raises:
            SandboxUnavailable: None answers.
        """

        async def ask(server: Server) -> Health:
            return _made(Health, server, await self._send(server, "GET", "/health"))

        return await self._first(self._servers, ask, self._timeout)

    async def create_session(self, images: Sequence[bytes] = ()) -> SandboxSession:
        """Open a session.

        Args:
            images: Encoded image files (PNG, JPEG, WebP, ...), which the session's code sees as
                the PIL images image_1, image_2, and so on. Each is sent only if the server does
                not have it.

        Raises:
            SandboxUnavailable: No server can be reached and takes one more session.
            SandboxError: A server refuses an image or the request.
        """
        digests = [await self._digests.of(image) for image in images]
        by_digest = dict(zip(digests, images, strict=True))

        async def create(server: Server) -> SandboxSession:
            server.opening += 1
            try:
                session = await self._create_at(server, digests, by_digest)
                server.worked()
                return session
            finally:
                server.opening -= 1

        return await self._first(preferred(self._servers), create, self._timeout)

    async def _create_at(
        self, server: Server, digests: list[str], by_digest: dict[str, bytes]
    ) -> SandboxSession:
        worker: str | None = None
        wanted: dict[str, Any] = {"images": digests}
        if len(self._servers) > 1:
            wanted["wait"] = _SPILL_SECONDS  # Another server may have room at once.
        for _ in range(_UPLOAD_ROUNDS):
            response = await self._send(
                server, "POST", "/v1/sessions", wanted, allow=(404,), worker=worker
            )
            answer = _fields(server, response)
            if "id" in answer:
                return SandboxSession(self, answer["id"], server)
            missing = answer.get("missing")
            if not missing:
                raise SandboxError(f"{server.url} is no sandbox server: it does not know sessions")
            worker = response.headers.get(WORKER_HEADER)
            await asyncio.gather(*(self._upload(server, d, by_digest[d], worker) for d in missing))
        raise SandboxUnavailable(
            f"the sandbox at {server.url} forgot images as fast as they came; raise image_cache_mb"
        )

    async def _upload(self, server: Server, digest: str, image: bytes, worker: str | None) -> None:
        """Send an image to a server once, however many sessions wait for it."""

        async def upload() -> None:
            await self._send(server, "PUT", f"/v1/images/{digest}", image, worker=worker)

        await server.uploads.run(digest, upload)

    async def _first(
        self,
        servers: Sequence[Server],
        ask: Callable[[Server], Awaitable[T]],
        timeout: float,
        failures: Sequence[SandboxUnavailable] = (),
    ) -> T:
        """Ask one server after another until one does what is asked.

        Each may take its share of the time that is left.
        """
        failures = list(failures)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        for asked, server in enumerate(servers):
            try:
                share = (deadline - loop.time()) / (len(servers) - asked)
                async with _limit(server, share):
                    return await ask(server)
            except SandboxUnavailable as error:
                if len(self._servers) > 1:
                    server.failed(error)
                failures.append(error)
        if len(failures) == 1:
            raise failures[0]
        raise SandboxUnavailable("no sandbox server can do it: " + "; ".join(map(str, failures)))

    async def _send(
        self,
        server: Server,
        method: str,
        path: str,
        body: dict[str, Any] | bytes | None = None,
        *,
        allow: Sequence[int] = (),
        timeout: float | None = None,
        worker: str | None = None,
    ) -> httpx.Response:
        """Send a request, once more if its connection breaks: the server may be well.

        Args:
            server: Where to.
            method: HTTP method.
            path: Path below the server's base URL.
            body: JSON or bytes.
            allow: Status codes of errors that are an answer for the caller.
            timeout: Seconds that the answer may take.
            worker: The server's worker process that can answer best, if known.

        Raises:
            _Unreachable: The server does not answer.
            SandboxUnavailable: It cannot do it.
            SandboxError: It refuses.
        """
        if isinstance(body, dict):
            # ASCII only, so that lone surrogates in generated code survive the way.
            body = json.dumps(body).encode("ascii")
        request = partial(
            self._request, server, method, path, body, timeout or self._timeout, worker
        )
        try:
            response = await request()
        except _Broken:
            response = await request()
        if response.is_success or response.status_code in allow:
            return response
        sentence = (
            f"the sandbox at {server.url} answered {response.status_code}: {_reason(response)}"
        )
        raise (SandboxUnavailable if response.status_code >= 500 else SandboxError)(sentence)

    async def _request(
        self,
        server: Server,
        method: str,
        path: str,
        body: bytes | None,
        timeout: float,
        worker: str | None,
    ) -> httpx.Response:
        try:
            async with _limit(server, timeout):
                return await self._http.request(
                    method, server.url + path, content=body, extensions={WORKER: worker}
                )
        except httpx.HTTPError as error:
            kind = _Broken if isinstance(error, _BREAKS) else _Unreachable
            raise kind(
                f"the sandbox at {server.url} does not answer ({type(error).__name__}: {error})"
            ) from error


class SandboxSession:
    """One live Python session. Cells run one after another and share their variables."""

    def __init__(self, client: SandboxClient, session_id: str, server: Server) -> None:
        """Take up a session of that name; ``SandboxClient.create_session`` makes one."""
        self._client = client
        self._id = session_id
        # With several worker processes a session's name begins with the number of its own.
        self._worker = session_id.partition("-")[0]
        self._server = server
        self._server.sessions.add(self)
        self._turn = asyncio.Lock()
        self._cells = 0
        self._over = False

    @property
    def id(self) -> str:
        """The server's name for the session."""
        return self._id

    @property
    def server(self) -> str:
        """Base URL of the server that the session is on."""
        return self._server.url

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
        """Run one cell, after those that were given before.

        If the session's server fails, another one that shares its Redis restores the session and
        runs the cell; what did not come back is in the result's ``lost_names``. If the failed server
        had run the cell already, it does not run twice: the outcome is "error" with the error name
        "SandboxFailover".

        Args:
            code: Python source, as in a Jupyter cell.
            timeout: Seconds after which the cell is interrupted.

        Returns:
            What the code did, also when it failed, hung or killed its process.

        Raises:
            SandboxUnavailable: The session's server did not answer, and no other one either.
        """
        async with self._turn:
            if self._over:
                return ExecutionResult("lost", stderr=_LOST)
            cell = {"code": code, "timeout": timeout, "cell": self._cells}
            limit = timeout + _SLACK_SECONDS
            # A cell that is given up counts too, since the server may have run it.
            self._cells += 1
            try:
                return await self._anywhere(
                    lambda server: self._execute_at(server, cell, limit), limit
                )
            except SandboxUnavailable:
                raise
            except SandboxError:
                self._cells -= 1  # It was refused.
                raise

    async def _execute_at(
        self, server: Server, cell: dict[str, Any], limit: float
    ) -> ExecutionResult:
        response = await self._send(
            "POST", "/execute", cell, allow=(404, 409), timeout=limit, server=server
        )
        if response.status_code == 404:
            self._end()
            return ExecutionResult("lost", stderr=_LOST)
        if server is not self._server:
            logger.warning("session %s moved from %s to %s", self.id, self.server, server.url)
            self._server.sessions.discard(self)
            self._server = server
            self._server.sessions.add(self)
        if response.status_code == 409:
            return ExecutionResult("error", stderr=_ALREADY_RAN, error_name="SandboxFailover")
        return _made(ExecutionResult, server, response)

    async def interrupt(self) -> None:
        """Interrupt the running cell, if there is one.

        Raises:
            SandboxUnavailable: The session's server did not answer.
        """
        await self._send("POST", "/interrupt", allow=(404,))

    async def evict(self) -> None:
        """Put the session away until its next cell, after its running one: it frees its memory.

        Raises:
            SandboxUnavailable: The session's server did not answer, or cannot put it away now.
        """
        async with self._turn:
            await self._send("POST", "/evict", allow=(404,))

    async def close(self) -> None:
        """End the session, also in the middle of a cell; does nothing the second time."""
        if not self._over:
            self._end()
            try:
                # Another server may have to drop what the two share of the session.
                await self._anywhere(
                    lambda server: self._send("DELETE", "", server=server), self._client._timeout
                )
            except SandboxUnavailable as error:
                # The session is gone with its server, or ends when it has been idle.
                logger.warning("a sandbox session was left open: %s", error)

    async def _anywhere(self, ask: Callable[[Server], Awaitable[T]], limit: float) -> T:
        """Ask the session's server, and others if that one is gone.

        Args:
            ask: What to ask.
            limit: Seconds that it may take; twice if a connection breaks.
        """
        try:
            return await ask(self._server)
        except _Unreachable as error:
            others = [other for other in self._client._servers if other is not self._server]
            if not others:
                raise
            self._server.failed(error)
            total = 2 * limit * len(others)
            return await self._client._first(preferred(others), ask, total, [error])

    def _end(self) -> None:
        self._over = True
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
    ) -> httpx.Response:
        return await self._client._send(
            server or self._server,
            method,
            f"/v1/sessions/{self._id}{action}",
            body,
            allow=allow,
            timeout=timeout,
            worker=self._worker,
        )


class _Digests:
    """The SHA-256 of images; that of a large one is computed in a thread, and once for a while.

    The sixteen rollouts of a prompt bring the same object, which is known by its identity. That is
    only safe while the object is held, so the last few are held.
    """

    def __init__(self) -> None:
        self._recent: LRUCache[int, tuple[bytes, asyncio.Task[str]]] = LRUCache(
            _REMEMBERED_IMAGE_BYTES, getsizeof=lambda held: len(held[0])
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


def _fields(server: Server, response: httpx.Response) -> dict[str, Any]:
    packed = response.headers.get("content-type") == _MSGPACK
    try:
        return dict(msgpack.unpackb(response.content) if packed else response.json())
    except (ValueError, TypeError) as error:
        raise SandboxError(f"{server.url} is no sandbox server: {error}") from error


def _made(kind: type[T], server: Server, response: httpx.Response) -> T:
    """Make a dataclass from the fields that it knows; a newer server may send more."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    fields = _fields(server, response)
    try:
        return kind(**{name: value for name, value in fields.items() if name in known})
    except TypeError as error:
        raise SandboxError(f"{server.url} is no sandbox server: {error}") from error


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
