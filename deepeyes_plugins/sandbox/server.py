"""The HTTP server: sessions over a kernel provider.

| request | answer |
| --- | --- |
| `GET /health` | isolation layers, live sessions, versions; needs no token |
| `PUT /v1/images/{sha256}` | 204; 422 if the body is no usable image or has another hash |
| `POST /v1/sessions` `{"images": [sha256, ...]}` | `{"id"}`; 404 with `missing` hashes to upload |
| `POST /v1/sessions/{id}/execute` `{"code", "timeout"}` | an `ExecutionResult`; 404 if gone |
| `POST /v1/sessions/{id}/interrupt` | 204 |
| `DELETE /v1/sessions/{id}` | 204, whether it existed or not |
| `POST /jupyter_sandbox`, `POST /clear_session` | the API of the DeepEyes reference server |

Results are msgpack with raw PNG bytes for those who accept `application/x-msgpack`, else JSON with
base64. Errors are `{"error": sentence}`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import importlib.metadata
import json
import logging
import platform
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import Any
from uuid import uuid4

import msgpack
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .contracts import ExecutionResult, Health, SandboxUnavailable
from .kernels import make_provider
from .kernels.contract import ImageRejected, ImagesMissing, Kernel, KernelProvider
from .settings import SandboxSettings

logger = logging.getLogger(__name__)

MSGPACK = "application/x-msgpack"
MAX_BODY_BYTES = 128 << 20
MAX_IMAGES_PER_SESSION = 100
_VERSIONS = ("ipython", "numpy", "pillow", "matplotlib", "starlette", "uvicorn")


class Session:
    """One live session: a kernel, its queue and its idle clock."""

    def __init__(self, kernel: Kernel) -> None:
        """Takes charge of a fresh kernel."""
        self.kernel = kernel
        self.lock = asyncio.Lock()
        self.waiting = 0
        self.idle_timer: asyncio.TimerHandle | None = None


class Sessions:
    """The live sessions of a server, by id."""

    def __init__(self, provider: KernelProvider, settings: SandboxSettings) -> None:
        """Starts with none."""
        self._provider = provider
        self._settings = settings
        self._live: dict[str, Session] = {}
        self._opening = 0
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._live

    async def create(self, images: list[str], session_id: str | None = None) -> str:
        """Opens a session and returns its id.

        Raises:
            ImagesMissing: Images must be uploaded first.
            SandboxUnavailable: The server is full or cannot start a process.
        """
        if len(self._live) + self._opening >= self._settings.max_sessions:
            self._sweep()
        if len(self._live) + self._opening >= self._settings.max_sessions:
            raise SandboxUnavailable(
                f"all {self._settings.max_sessions} sessions are in use; close some, raise "
                "max_sessions or add a server"
            )
        self._opening += 1
        try:
            kernel = await self._provider.open(images)
        finally:
            self._opening -= 1
        session_id = session_id or uuid4().hex
        session = Session(kernel)
        self._live[session_id] = session
        self._watch_idle(session_id, session)
        return session_id

    async def execute(self, session_id: str, code: str, timeout: float) -> ExecutionResult:
        """Runs a cell after those that the session was given before.

        Raises:
            KeyError: There is no such session.
        """
        session = self._live[session_id]
        session.waiting += 1
        if session.idle_timer is not None:
            session.idle_timer.cancel()
        try:
            async with session.lock:
                seconds = min(timeout, self._settings.cell_timeout)
                result = await session.kernel.execute(code, seconds)
        finally:
            session.waiting -= 1
            if self._live.get(session_id) is not session:
                pass  # Closed meanwhile.
            elif not session.kernel.alive:
                self.close(session_id)
            elif session.waiting == 0:
                self._watch_idle(session_id, session)
        return result

    def interrupt(self, session_id: str) -> None:
        """Interrupts the running cell of a session, if there is one."""
        self._live[session_id].kernel.interrupt()

    def close(self, session_id: str) -> None:
        """Ends a session, also in the middle of a cell; what remains to tidy goes on behind."""
        session = self._live.pop(session_id, None)
        if session is not None:
            if session.idle_timer is not None:
                session.idle_timer.cancel()
            task = asyncio.ensure_future(session.kernel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _sweep(self) -> None:
        """Forgets sessions that died between two cells."""
        for session_id, session in list(self._live.items()):
            if not session.kernel.alive:
                self.close(session_id)

    async def close_all(self) -> None:
        """Ends every session and waits until nothing is left of them."""
        for session_id in list(self._live):
            self.close(session_id)
        await asyncio.gather(*self._closing)

    def _watch_idle(self, session_id: str, session: Session) -> None:
        def expire() -> None:
            if self._live.get(session_id) is session:
                logger.info("session %s was idle for too long", session_id)
                self.close(session_id)

        loop = asyncio.get_running_loop()
        session.idle_timer = loop.call_later(self._settings.idle_timeout, expire)


class SandboxServer:
    """The HTTP handlers."""

    def __init__(
        self, provider: KernelProvider, settings: SandboxSettings, token: str | None
    ) -> None:
        """Serves kernels of the provider to those who know the token."""
        self._provider = provider
        self._settings = settings
        self._token = token
        self._sessions = Sessions(provider, settings)
        self._started = False
        self._legacy_locks: dict[str, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Starts the provider before the first request and ends everything after the last."""
        try:
            await self._provider.start()
            self._started = True
            yield
        except SandboxUnavailable as error:
            app.state.failure = str(error)
            raise
        finally:
            await self._sessions.close_all()
            await self._provider.close()

    def routes(self) -> list[Route]:
        """The paths served, as in the table above."""
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/v1/images/{digest}", self._guarded(self.put_image), methods=["PUT"]),
            Route("/v1/sessions", self._guarded(self.create), methods=["POST"]),
            Route("/v1/sessions/{id}/execute", self._guarded(self.execute), methods=["POST"]),
            Route("/v1/sessions/{id}/interrupt", self._guarded(self.interrupt), methods=["POST"]),
            Route("/v1/sessions/{id}", self._guarded(self.close), methods=["DELETE"]),
            Route("/jupyter_sandbox", self._guarded(self.legacy_execute), methods=["POST"]),
            Route("/clear_session", self._guarded(self.legacy_clear), methods=["POST"]),
        ]

    def _guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Checks the token and turns the sandbox's errors into answers."""

        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode()
            if self._token and not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
                return _error(401, "this sandbox server wants a bearer token")
            try:
                return await handler(request)
            except ImagesMissing as error:
                return JSONResponse({"error": str(error), "missing": error.digests}, 404)
            except ImageRejected as error:
                return _error(422, str(error))
            except SandboxUnavailable as error:
                return _error(503, str(error))

        return guarded

    async def health(self, request: Request) -> Response:
        """Tells about isolation, load and versions."""
        versions = {"python": platform.python_version(), "kernel": platform.release()}
        for package in _VERSIONS:
            versions[package] = importlib.metadata.version(package)
        health = Health(
            status="ok" if self._started else "starting",
            sessions=len(self._sessions),
            max_sessions=self._settings.max_sessions,
            isolation=self._provider.isolation(),
            versions=versions,
        )
        return JSONResponse(health.as_dict())

    async def put_image(self, request: Request) -> Response:
        """Holds an image under its hash."""
        data = await _body(request)
        digest = request.path_params["digest"]
        actual = hashlib.sha256(data).hexdigest()
        if digest != actual:
            return _error(422, f"the body has the SHA-256 {actual}, not {digest}")
        await self._provider.add_image(digest, data)
        return Response(status_code=204)

    async def create(self, request: Request) -> Response:
        """Opens a session on images that are held."""
        images = (await _json(request)).get("images", [])
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            return _error(422, "images must be a list of SHA-256 hashes")
        if len(images) > MAX_IMAGES_PER_SESSION:
            return _error(422, f"a session has at most {MAX_IMAGES_PER_SESSION} images")
        return JSONResponse({"id": await self._sessions.create(images)}, 201)

    async def execute(self, request: Request) -> Response:
        """Runs a cell."""
        code, timeout = _cell(await _json(request), self._settings.cell_timeout)
        try:
            result = await self._sessions.execute(request.path_params["id"], code, timeout)
        except KeyError:
            return _error(404, "there is no such session (any more)")
        return _result(result, request)

    async def interrupt(self, request: Request) -> Response:
        """Interrupts a running cell."""
        try:
            self._sessions.interrupt(request.path_params["id"])
        except KeyError:
            return _error(404, "there is no such session (any more)")
        return Response(status_code=204)

    async def close(self, request: Request) -> Response:
        """Ends a session."""
        self._sessions.close(request.path_params["id"])
        return Response(status_code=204)

    async def legacy_execute(self, request: Request) -> Response:
        """Runs a cell in a session that the client names and that begins with its first cell."""
        started = time.perf_counter()
        body = await _json(request)
        code, timeout = _cell({"timeout": 5.0} | body, self._settings.cell_timeout)
        if not code.strip():
            result = ExecutionResult("error", stderr="Error: No code provided")
        else:
            result = await self._legacy_run(_legacy_id(body), code, timeout)
        output = {
            "result": result.result,
            "stdout": result.stdout,
            "stderr": _legacy_stderr(result),
            "images": [base64.b64encode(image).decode("ascii") for image in result.images],
        }
        # What the code itself did wrong is told in stderr, with status success.
        ran = bool(code.strip()) and result.outcome in ("ok", "error", "timeout")
        return JSONResponse(
            {
                "output": output,
                "status": "success" if ran else "error",
                "execution_time": time.perf_counter() - started,
            }
        )

    async def _legacy_run(self, session_id: str, code: str, timeout: float) -> ExecutionResult:
        # Two first cells at once must share one session.
        async with self._legacy_locks.setdefault(session_id, asyncio.Lock()):
            if session_id not in self._sessions:
                await self._sessions.create([], session_id)
        self._legacy_locks.pop(session_id, None)
        return await self._sessions.execute(session_id, code, timeout)

    async def legacy_clear(self, request: Request) -> Response:
        """Ends a session that the client named."""
        session_id = _legacy_id(await _json(request))
        self._sessions.close(session_id)
        return JSONResponse({"status": "success"})


def create_app(
    settings: SandboxSettings, *, token: str | None = None, provider: KernelProvider | None = None
) -> Starlette:
    """Makes the ASGI application. Its sessions live in the process that serves it.

    Args:
        settings: Limits of the sessions.
        token: Bearer token that clients must send, if any.
        provider: Where kernels come from; by default the one that the settings name.
    """
    server = SandboxServer(provider or make_provider(settings), settings, token)
    return Starlette(
        routes=server.routes(),
        lifespan=server.lifespan,
        exception_handlers={HTTPException: _http_error},
    )


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


async def _body(request: Request) -> bytes:
    if int(request.headers.get("content-length") or 0) > MAX_BODY_BYTES:
        raise HTTPException(413, f"a request has at most {MAX_BODY_BYTES} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a request has at most {MAX_BODY_BYTES} bytes")
    return bytes(body)


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await _body(request))
    except ValueError as error:
        raise HTTPException(422, f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise HTTPException(422, "the body must be a JSON object")
    return body


def _cell(body: dict[str, Any], default_timeout: float) -> tuple[str, float]:
    code, timeout = body.get("code", ""), body.get("timeout", default_timeout)
    if not isinstance(code, str):
        raise HTTPException(422, "code must be a string")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise HTTPException(422, "timeout must be a positive number of seconds")
    return code, float(timeout)


def _result(result: ExecutionResult, request: Request) -> Response:
    fields = asdict(result)
    if MSGPACK in request.headers.get("accept", ""):
        body = msgpack.packb(fields, unicode_errors="backslashreplace")
        return Response(body, media_type=MSGPACK)
    images = [base64.b64encode(image).decode("ascii") for image in result.images]
    return JSONResponse(fields | {"images": images})


def _legacy_id(body: dict[str, Any]) -> str:
    # Apart from the ids that this server makes, so that no legacy client can reach another session.
    return f"legacy:{body.get('session_id', 'JupyterSandboxDefault')}"


def _legacy_stderr(result: ExecutionResult) -> str:
    if result.error_name in ("SyntaxError", "IndentationError", "TabError"):
        found = re.search(r"^\w+Error: (.*)\Z", result.stderr.strip(), re.MULTILINE | re.DOTALL)
        return f"SyntaxError - {found.group(1) if found else result.stderr}"
    return result.stderr
