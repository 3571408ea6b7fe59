"""Guard of our HTTP servers against strangers and against pages in a user's browser.

A page on another site can send requests to a server on loopback. It is told apart by headers that
browsers set and pages cannot: ``Origin`` and ``Sec-Fetch-Site``. A page whose host name was pointed
at loopback (DNS rebinding) is told apart by ``Host``. A body must not have a content type that a
page can send to another site without asking.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from deepeyes_plugins.remote.redaction import protect

Handler = Callable[[Request], Awaitable[Response]]

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine can reach."""
_FOREIGN_SITES = frozenset({"cross-site", "same-site"})
_SIMPLE_TYPES = frozenset(
    {"text/plain", "multipart/form-data", "application/x-www-form-urlencoded"}
)
"""Content types that pages can send to another site without asking (Fetch standard,
"CORS-safelisted request-header")."""


class Guard:
    """ASGI middleware that refuses requests of strangers.

    Handlers read ``request.state.may_call``: whether the client has sent the token, or the server
    has none; and ``request.state.may_look``: whether it may see the state of the server, which
    clients on loopback may, too.
    """

    def __init__(self, app: ASGIApp, token: str | None, host: str = "") -> None:
        """Wrap an application.

        Args:
            app: The application.
            token: Bearer token that clients must send, if any.
            host: Name or address on which the server listens, which clients may use for it.
        """
        protect(token)
        self._app = app
        self._expected = f"Bearer {token}".encode() if token else b""
        self._names = {*LOOPBACK, host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request by an error, or pass it to the application."""
        if scope["type"] != "http":  # Neither server has WebSockets.
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("authorization", "").encode("latin-1", "replace")
        has_token = bool(self._expected) and hmac.compare_digest(given, self._expected)
        may_call = has_token or not self._expected
        if problem := self._problem(scope, headers, has_token, may_call):
            status, reason = problem
            await JSONResponse({"error": reason}, status)(scope, receive, send)
            return
        is_local = _hosts(headers) <= {*LOOPBACK} and _client(scope) in LOOPBACK
        scope.setdefault("state", {}).update(may_call=may_call, may_look=may_call or is_local)
        await self._app(scope, receive, send)

    def _problem(
        self, scope: Scope, headers: Headers, has_token: bool, may_call: bool
    ) -> tuple[int, str] | None:
        """Return status and reason of a refusal; ``None`` for a request that is let through."""
        # With the token, a client may know the server by any name.
        own = {*self._names, (scope.get("server") or ("",))[0]}
        if not has_token and not _hosts(headers) <= own:
            return 421, (
                "this server is not known by the name in the header Host: use its address, or "
                "localhost on its machine, or send its bearer token"
            )
        if _is_of_another_site(headers):
            return 403, "this server answers no pages of other sites"
        if may_call and _has_body(headers) and _may_be_of_a_page(headers):
            return 415, "the content type of a request must be application/json"
        return None


def authorised(handler: Handler) -> Handler:
    """Wrap a handler: refuse clients that have not sent the server's token."""

    async def checked(request: Request) -> Response:
        if request.state.may_call:
            return await handler(request)
        return JSONResponse({"error": "this server requires a bearer token"}, 401)

    return checked


def _hosts(headers: Headers) -> set[str]:
    """Return the names by which a request addresses the server, without ports."""
    return {_parsed(f"//{host}").hostname or "" for host in headers.getlist("host") or [""]}


def _parsed(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _client(scope: Scope) -> str:
    return (scope.get("client") or ("",))[0]


def _is_of_another_site(headers: Headers) -> bool:
    """Return whether a browser says that a page of another origin sends the request."""
    origins = {_parsed(origin).netloc for origin in headers.getlist("origin")}
    own = {headers.get("host", "")}
    return headers.get("sec-fetch-site") in _FOREIGN_SITES or not origins <= own


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _may_be_of_a_page(headers: Headers) -> bool:
    """Return whether a body has a content type that pages can send without asking.

    Programs may leave the type out: browsers that do so name the page in ``Origin``.
    """
    return headers.get("content-type", "").partition(";")[0].strip().lower() in _SIMPLE_TYPES
