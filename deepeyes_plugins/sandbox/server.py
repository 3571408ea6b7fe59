"""HTTP server of the sandbox: request handlers and authentication."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import importlib.metadata
import json
import logging
import platform
import re
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TypeVar
from uuid import uuid4
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
from deepeyes_plugins.sandbox import api
from deepeyes_plugins.sandbox.contracts import ExecutionResult, Health, SandboxUnavailable
from deepeyes_plugins.sandbox.image_cache import ImageCache
from deepeyes_plugins.sandbox.kernels import make_provider
from deepeyes_plugins.sandbox.kernels.contract import ImageRejected, ImagesMissing, KernelProvider
from deepeyes_plugins.sandbox.metrics import Metrics
from deepeyes_plugins.sandbox.sessions import CellHasRun, Sessions
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.sandbox.snapshots import make_store
from deepeyes_plugins.serving.guard import Guard, Handler, authorised

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 128 << 20
_HASH_IN_THREAD_BYTES = 1 << 20
_LEGACY = "legacy:"
_PACKAGES = ("ipython", "numpy", "pillow", "matplotlib", "starlette", "uvicorn")

Message = TypeVar("Message", bound=BaseModel)


class SandboxServer:
    """HTTP handlers of one server process."""

    def __init__(self, provider: KernelProvider, settings: SandboxSettings) -> None:
        self._provider = provider
        self._settings = settings
        self._metrics = Metrics()
        store = make_store(settings)
        self._images = ImageCache(provider, store, settings.image_cache_mb << 20)
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

    def routes(self) -> list[Route]:
        """Return one route per path of the API."""
        by_path: dict[str, dict[str, Handler]] = {}
        for name, endpoint in api.ENDPOINTS.items():
            handler: Handler = getattr(self, name)
            answered = handler if endpoint.public else authorised(self._answered(handler))
            by_path.setdefault(endpoint.path, {})[endpoint.method] = answered
        return [
            Route(path, _by_method(handlers), methods=list(handlers))
            for path, handlers in by_path.items()
        ]

    def _answered(self, handler: Handler) -> Handler:
        """Wrap a handler: turn the sandbox's errors into responses."""

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except ImagesMissing as error:
                return JSONResponse({"error": str(error), "missing": error.digests}, 404)
            except ImageRejected as error:
                return _problem(422, str(error))
            except CellHasRun as error:
                return _problem(409, str(error))
            except SandboxUnavailable as error:
                return _problem(503, str(error))
            except KeyError:
                return _problem(404, "no such session, or it has ended")

        return answered

    async def health(self, request: Request) -> Response:
        """Report isolation, load and versions; to strangers, only whether sessions can start."""
        status = "ok" if self._started else "starting"
        if not request.state.may_look:
            return JSONResponse({"status": status})
        health = Health(
            status=status,
            sessions=self._sessions.live,
            stored=self._sessions.stored,
            max_sessions=self._settings.max_sessions,
            isolation=self._provider.isolation(),
            notes=self._provider.notes(),
            versions=self._versions,
        )
        return JSONResponse(asdict(health))

    async def metrics(self, request: Request) -> Response:
        """Return the metrics for Prometheus."""
        if not request.state.may_look:
            return _problem(401, "the metrics require a bearer token, or a client on this machine")
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def document(self, request: Request) -> Response:
        """Return the OpenAPI document."""
        return JSONResponse(api.document(__version__))

    async def put_image(self, request: Request) -> Response:
        """Store an image under its hash."""
        body = await _read(request)
        digest = request.path_params["digest"]
        if len(body) > _HASH_IN_THREAD_BYTES:
            actual = await asyncio.to_thread(_sha256, body)
        else:
            actual = _sha256(body)
        if digest != actual:
            return _problem(422, f"the body has the SHA-256 {actual}, not {digest}")
        await self._images.add(digest, body)
        return Response(status_code=204)

    async def get_image(self, request: Request) -> Response:
        """Return an uploaded image."""
        data = self._images.get(request.path_params["digest"])
        if data is None:
            return _problem(404, "no such image")
        return Response(data, media_type="application/octet-stream")

    async def create(self, request: Request) -> Response:
        """Create a session on uploaded images."""
        wanted = await _parse(api.SessionRequest, request)
        session_id = uuid4().hex
        await self._sessions.create(session_id, wanted.images, wanted.wait)
        return JSONResponse({"id": session_id}, 201)

    async def execute(self, request: Request) -> Response:
        """Run a cell."""
        cell = await _parse(api.CellRequest, request)
        timeout = cell.timeout or self._settings.cell_timeout
        session_id = _native_id(request)
        result = await self._sessions.execute(session_id, cell.code, timeout, cell.cell)
        return _result(result, request)

    async def interrupt(self, request: Request) -> Response:
        """Interrupt a running cell."""
        self._sessions.interrupt(_native_id(request))
        return Response(status_code=204)

    async def evict(self, request: Request) -> Response:
        """Evict a session."""
        await self._sessions.evict(_native_id(request))
        return Response(status_code=204)

    async def close(self, request: Request) -> Response:
        """End a session."""
        with contextlib.suppress(KeyError):
            self._sessions.close(_native_id(request))
        return Response(status_code=204)

    async def legacy_execute(self, request: Request) -> Response:
        """Run a cell of the legacy API: the client names the session, its first cell creates it."""
        started = time.perf_counter()
        cell = await _parse(api.LegacyCell, request)
        if cell.code.strip():
            result = await self._legacy_run(_legacy_id(cell), cell.code, cell.timeout)
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
        self._sessions.close(_legacy_id(await _parse(api.LegacySession, request)))
        return JSONResponse({"status": "success"})


def create_app(
    settings: SandboxSettings,
    *,
    token: str | None = None,
    provider: KernelProvider | None = None,
    host: str = "127.0.0.1",
) -> Starlette:
    """Make the ASGI application. Its sessions live in the process that serves it.

    Args:
        settings: Limits of the sessions.
        token: Bearer token that clients must send, if any.
        provider: Kernel provider; by default the one that the settings name.
        host: Name or address on which the server listens.
    """
    server = SandboxServer(provider or make_provider(settings), settings)
    app = Starlette(
        routes=server.routes(),
        lifespan=server.lifespan,
        exception_handlers={HTTPException: _http_error, ClientDisconnect: _client_disconnected},
    )
    app.router.redirect_slashes = False  # No path of the API ends in a slash.
    app.add_middleware(Guard, token, host)
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


async def _read(request: Request) -> bytes:
    if int(request.headers.get("content-length") or 0) > MAX_BODY_BYTES:
        raise HTTPException(413, f"a request has at most {MAX_BODY_BYTES} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a request has at most {MAX_BODY_BYTES} bytes")
    return bytes(body)


async def _parse(message: type[Message], request: Request) -> Message:
    body = await _read(request)
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


def _legacy_id(message: api.LegacySession) -> str:
    # A namespace of their own: legacy clients choose the IDs and must not reach other sessions.
    return f"{_LEGACY}{message.session_id}"


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
