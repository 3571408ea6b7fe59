"""HTTP server of the sandbox: request handlers, authentication and relay between workers."""

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
from dataclasses import asdict, dataclass
from typing import TypeVar
from weakref import WeakValueDictionary

import msgpack
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deepeyes_plugins import __version__
from deepeyes_plugins.remote.redaction import protect
from deepeyes_plugins.sandbox import api
from deepeyes_plugins.sandbox.contracts import ExecutionResult, Health, SandboxUnavailable
from deepeyes_plugins.sandbox.image_cache import ImageCache
from deepeyes_plugins.sandbox.kernels import make_provider
from deepeyes_plugins.sandbox.kernels.contract import ImageRejected, ImagesMissing, KernelProvider
from deepeyes_plugins.sandbox.metrics import Metrics
from deepeyes_plugins.sandbox.sessions import CellHasRun, Sessions, new_id
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.sandbox.snapshots import make_store
from deepeyes_plugins.sandbox.workers import (
    RELAYED_HEADER,
    WORKER_HEADER,
    Relay,
    WorkerGone,
    WorkerPool,
)

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 128 << 20
_HASH_IN_THREAD_BYTES = 1 << 20
_CELL_OVERHEAD_SECONDS = 60.0
_LEGACY = "legacy:"
_PACKAGES = ("ipython", "numpy", "pillow", "matplotlib", "starlette", "uvicorn")

Message = TypeVar("Message", bound=BaseModel)
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class _Call:
    """Request with its body."""

    request: Request
    body: bytes

    @property
    def relayed(self) -> bool:
        return RELAYED_HEADER in self.request.headers


class SandboxServer:
    """HTTP handlers of one server process."""

    def __init__(
        self,
        provider: KernelProvider,
        settings: SandboxSettings,
        token: str | None,
        pool: WorkerPool,
    ) -> None:
        self._provider = provider
        self._settings = settings
        protect(token)
        self._token = token
        self._pool = pool
        self._relay = Relay(pool, token)
        self._metrics = Metrics()
        store = make_store(settings)
        self._images = ImageCache(
            provider,
            store,
            settings.image_cache_mb << 20,
            self._relay.image if pool.count > 1 else None,
        )
        self._sessions = Sessions(provider, self._images, store, settings, self._metrics)
        self._started = False
        self._versions = _versions()
        # A lock exists while a request holds or awaits it.
        self._legacy_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Start the provider before the first request, and close everything after the last."""
        try:
            await self._provider.start()
            self._sessions.start()
            self._started = True
            yield
        except SandboxUnavailable as error:
            app.state.failure = str(error)
            raise
        finally:
            await self._sessions.close_all()
            await self._provider.close()
            await self._relay.close()

    def routes(self) -> list[Route]:
        """Return one route per path of the API."""
        by_path: dict[str, dict[str, Handler]] = {}
        for name, endpoint in api.ENDPOINTS.items():
            handler: Handler = getattr(self, name)
            guarded = handler if endpoint.public else self._guarded(handler)
            by_path.setdefault(endpoint.path, {})[endpoint.method] = guarded
        return [
            Route(path, _by_method(handlers), methods=list(handlers))
            for path, handlers in by_path.items()
        ]

    def _guarded(self, handler: Handler) -> Handler:
        """Wrap a handler: check the token, and turn the sandbox's errors into responses."""
        expected = f"Bearer {self._token}".encode() if self._token else b""

        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode("latin-1", "replace")
            if expected and not hmac.compare_digest(given, expected):
                return _problem(401, "this sandbox server requires a bearer token")
            try:
                response = await handler(request)
            except ImagesMissing as error:
                body = {"error": str(error), "missing": error.digests}
                response = JSONResponse(body, 404)
            except ImageRejected as error:
                response = _problem(422, str(error))
            except CellHasRun as error:
                response = _problem(409, str(error))
            except SandboxUnavailable as error:
                response = _problem(503, str(error))
            except KeyError:
                response = _problem(404, "no such session, or it has ended")
            if self._pool.count > 1:
                response.headers.setdefault(WORKER_HEADER, str(self._pool.index))
            return response

        return guarded

    async def health(self, request: Request) -> Response:
        """Report isolation, load and versions, summed over all workers."""
        health = Health(
            status="ok" if self._started else "starting",
            sessions=self._sessions.live,
            stored=self._sessions.stored,
            max_sessions=self._settings.max_sessions,
            workers=1,
            isolation=self._provider.isolation(),
            notes=self._provider.notes(),
            versions=self._versions,
        )
        report = asdict(health)
        if self._pool.count > 1 and RELAYED_HEADER not in request.headers:
            for answer in await self._relay.get_all("/health"):
                other = answer.json()
                for key in ("sessions", "stored", "max_sessions", "workers"):
                    report[key] += other[key]
        return JSONResponse(report)

    async def metrics(self, request: Request) -> Response:
        """Return the metrics for Prometheus."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def document(self, request: Request) -> Response:
        """Return the OpenAPI document."""
        return JSONResponse(api.document(__version__))

    async def put_image(self, request: Request) -> Response:
        """Store an image under its hash."""
        call = await _read(request)
        digest = request.path_params["digest"]
        relayed = await self._relay_request(call, self._pool.of_image(digest))
        if relayed is not None:
            return relayed
        if len(call.body) > _HASH_IN_THREAD_BYTES:
            actual = await asyncio.to_thread(_sha256, call.body)
        else:
            actual = _sha256(call.body)
        if digest != actual:
            return _problem(422, f"the body has the SHA-256 {actual}, not {digest}")
        await self._images.add(digest, call.body)
        return Response(status_code=204)

    async def get_image(self, request: Request) -> Response:
        """Return an uploaded image."""
        digest = request.path_params["digest"]
        data = self._images.get(digest)
        if data is None and self._pool.count > 1 and RELAYED_HEADER not in request.headers:
            data = await self._relay.image(digest)
        if data is None:
            return _problem(404, "no such image")
        return Response(data, media_type="application/octet-stream")

    async def create(self, request: Request) -> Response:
        """Create a session on uploaded images."""
        call = await _read(request)
        session_request = _parse(api.SessionRequest, call.body)
        images = session_request.images
        if images:
            relayed = await self._relay_request(call, self._pool.of_image(images[0]))
            if relayed is not None:
                return relayed
        session_id = new_id(self._pool.index)
        await self._sessions.create(session_id, images, session_request.wait)
        return JSONResponse({"id": session_id}, 201)

    async def execute(self, request: Request) -> Response:
        """Run a cell."""
        call = await _read(request)
        cell = _parse(api.CellRequest, call.body)
        timeout = cell.timeout or self._settings.cell_timeout
        session_id = _native_id(request)
        relayed = await self._relay_request(
            call,
            self._pool.of_session(session_id),
            min(timeout, self._settings.cell_timeout) + _CELL_OVERHEAD_SECONDS,
            is_local=session_id in self._sessions,
        )
        if relayed is not None:
            return relayed
        result = await self._sessions.execute(session_id, cell.code, timeout, cell.cell)
        return _result(result, request)

    async def interrupt(self, request: Request) -> Response:
        """Interrupt a running cell."""
        session_id = _native_id(request)
        relayed = await self._relay_session_request(request, session_id)
        if relayed is not None:
            return relayed
        self._sessions.interrupt(session_id)
        return Response(status_code=204)

    async def evict(self, request: Request) -> Response:
        """Evict a session."""
        session_id = _native_id(request)
        relayed = await self._relay_session_request(request, session_id)
        if relayed is not None:
            return relayed
        await self._sessions.evict(session_id)
        return Response(status_code=204)

    async def close(self, request: Request) -> Response:
        """End a session."""
        try:
            session_id = _native_id(request)
        except KeyError:
            return Response(status_code=204)
        relayed = await self._relay_session_request(request, session_id)
        if relayed is not None:
            return relayed
        self._sessions.close(session_id)
        return Response(status_code=204)

    async def legacy_execute(self, request: Request) -> Response:
        """Run a cell of the legacy API: the client names the session, its first cell creates it."""
        started = time.perf_counter()
        call = await _read(request)
        cell = _parse(api.LegacyCell, call.body)
        session_id = _legacy_id(cell.session_id)
        seconds = min(cell.timeout, self._settings.cell_timeout) + _CELL_OVERHEAD_SECONDS
        relayed = await self._relay_request(call, self._pool.of_session(session_id), seconds)
        if relayed is not None:
            return relayed
        if cell.code.strip():
            result = await self._legacy_run(session_id, cell.code, cell.timeout)
        else:
            result = ExecutionResult("error", stderr="Error: No code provided")
        output = {
            "result": result.result,
            "stdout": result.stdout,
            "stderr": _legacy_stderr(result),
            "images": _base64(result.images),
        }
        # Errors of the code are reported in stderr, with status success.
        ran = bool(cell.code.strip()) and result.outcome in ("ok", "error", "timeout")
        return JSONResponse(
            {
                "output": output,
                "status": "success" if ran else "error",
                "execution_time": time.perf_counter() - started,
            }
        )

    async def _legacy_run(self, session_id: str, code: str, timeout: float) -> ExecutionResult:
        # Concurrent first cells must share one session.
        lock = self._legacy_locks.setdefault(session_id, asyncio.Lock())
        async with lock:
            try:
                if session_id not in self._sessions:
                    return await self._sessions.execute(session_id, code, timeout)
            except KeyError:
                await self._sessions.create(session_id, [])
        return await self._sessions.execute(session_id, code, timeout)

    async def legacy_clear(self, request: Request) -> Response:
        """End a session of the legacy API."""
        call = await _read(request)
        session_id = _legacy_id(_parse(api.LegacySession, call.body).session_id)
        relayed = await self._relay_request(call, self._pool.of_session(session_id))
        if relayed is not None:
            return relayed
        self._sessions.close(session_id)
        return JSONResponse({"status": "success"})

    async def _relay_session_request(self, request: Request, session_id: str) -> Response | None:
        is_local = session_id in self._sessions
        worker = self._pool.of_session(session_id)
        return await self._relay_request(_Call(request, b""), worker, is_local=is_local)

    async def _relay_request(
        self,
        call: _Call,
        worker: int,
        seconds: float = _CELL_OVERHEAD_SECONDS,
        *,
        is_local: bool = False,
    ) -> Response | None:
        """Relay a request to the worker that it is for.

        Returns:
            The response; None if this worker must serve the request, because it is the right one
            or because that one has died.
        """
        if worker == self._pool.index or is_local or call.relayed:
            return None
        request = call.request
        accept = {"accept": request.headers.get("accept", "*/*")}
        path = request.scope["raw_path"].decode("ascii")
        try:
            answer = await self._relay.request(
                worker, request.method, path, body=call.body, headers=accept, seconds=seconds
            )
        except WorkerGone as error:
            logger.warning("%s; worker %d serves the request", error, self._pool.index)
            return None
        headers = {}
        if "content-type" in answer.headers:
            headers["content-type"] = answer.headers["content-type"]
        return Response(answer.content, answer.status_code, headers)


def create_app(
    settings: SandboxSettings,
    *,
    token: str | None = None,
    provider: KernelProvider | None = None,
    pool: WorkerPool | None = None,
) -> Starlette:
    """Make the ASGI application. Its sessions live in the process that serves it.

    Args:
        settings: Limits of the sessions.
        token: Bearer token that clients must send, if any.
        provider: Kernel provider; by default the one that the settings name.
        pool: The pool of which this process is a worker; by default it is the only worker.
    """
    server = SandboxServer(
        provider or make_provider(settings), settings, token, pool or WorkerPool()
    )
    app = Starlette(
        routes=server.routes(),
        lifespan=server.lifespan,
        exception_handlers={HTTPException: _http_error, ClientDisconnect: _client_disconnected},
    )
    app.router.redirect_slashes = False  # No path of the API ends in a slash.
    return app


def _versions() -> dict[str, str]:
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {
        "deepeyes-plugins": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        **versions,
    }


def _problem(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, error.detail, dict(error.headers or {}))


async def _client_disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # Never received: the client has disconnected.


async def _read(request: Request) -> _Call:
    if int(request.headers.get("content-length") or 0) > MAX_BODY_BYTES:
        raise HTTPException(413, f"a request has at most {MAX_BODY_BYTES} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a request has at most {MAX_BODY_BYTES} bytes")
    return _Call(request, bytes(body))


def _parse(message: type[Message], body: bytes) -> Message:
    # The standard library's parser accepts lone surrogates, which models write.
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, f"the body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise HTTPException(422, "the body must be a JSON object")
    try:
        return message.model_validate(fields)
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise HTTPException(422, "; ".join(reasons)) from None


def _result(result: ExecutionResult, request: Request) -> Response:
    fields = asdict(result)
    if api.MSGPACK in request.headers.get("accept", ""):
        body = msgpack.packb(fields, unicode_errors="backslashreplace")
        return Response(body, media_type=api.MSGPACK)
    return JSONResponse(fields | {"images": _base64(result.images)})


def _base64(images: list[bytes]) -> list[str]:
    return [base64.b64encode(image).decode("ascii") for image in images]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _legacy_id(session_id: str | int) -> str:
    # A namespace of their own: legacy clients choose the IDs and must not reach other sessions.
    return f"{_LEGACY}{session_id}"


def _native_id(request: Request) -> str:
    """Return the session ID in the path.

    Raises:
        KeyError: It belongs to the legacy API.
    """
    session_id: str = request.path_params["id"]
    if session_id.startswith(_LEGACY):
        raise KeyError(session_id)
    return session_id


def _by_method(handlers: dict[str, Handler]) -> Handler:
    async def dispatch(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return dispatch


def _legacy_stderr(result: ExecutionResult) -> str:
    if result.error_name in ("SyntaxError", "IndentationError", "TabError"):
        found = re.search(r"^\w+Error: (.*)\Z", result.stderr.strip(), re.MULTILINE | re.DOTALL)
        return f"SyntaxError - {found.group(1) if found else result.stderr}"
    return result.stderr
