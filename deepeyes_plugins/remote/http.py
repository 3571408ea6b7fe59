"""HTTP sessions: the one place that opens connections, with TLS, time limits and proxies."""

from __future__ import annotations

import functools
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import certifi
from aiohttp.abc import AbstractResolver

from deepeyes_plugins.remote.redaction import protect_url, redact

_KEEP_ALIVE_SECONDS = 60.0
_LONGEST_HEADER = 1 << 16
"""Maximum header size in bytes; content-security policies exceed aiohttp's default of 8 KiB."""
_SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
"""They detect a machine that is down within 35 seconds, also while a response is awaited."""


def open_session(
    *,
    tls: bool,
    headers: Mapping[str, str] | None = None,
    connect_timeout: float | None = None,
    proxy: str | None = None,
    resolver: AbstractResolver | None = None,
    check: Callable[[str], None] = lambda address: None,
    decompress: bool = True,
) -> aiohttp.ClientSession:
    """Open a pool of connections for the running event loop, without cookies and overall limits.

    Args:
        tls: Whether any of its URLs is ``https``; reading all certificates takes time.
        headers: Headers of every request.
        connect_timeout: Seconds for opening a connection.
        proxy: URL of the proxy; those of the environment are used only through :func:`proxy_of`.
        resolver: Resolves host names, without cache.
        check: Called with each IP address before a connection to it; raises for one not allowed.
        decompress: Whether bodies are decompressed.
    """

    def make_socket(target: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = target
        check(address[0])
        connection = socket.socket(family, kind, protocol)
        for option in _SOCKET_OPTIONS:
            connection.setsockopt(*option)
        return connection

    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            ssl=_trusted() if tls else True,
            resolver=resolver,
            use_dns_cache=resolver is None,
            socket_factory=make_socket,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(sock_connect=connect_timeout),
        proxy=proxy,
        auto_decompress=decompress,
        max_line_size=_LONGEST_HEADER,
        max_field_size=_LONGEST_HEADER,
    )


def proxy_of(url: str) -> str | None:
    """Return the proxy that the environment names for a URL."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    protect_url(proxy or "")
    return proxy


def reason_of(error: aiohttp.ClientError) -> str:
    """Return why a request failed.

    Callers raise their own error ``from None``: that of the library quotes the URL and the
    response, which may repeat a key, and may have cut them.
    """
    if isinstance(error, aiohttp.ClientPayloadError):
        reason = "Response payload is not completed, or its encoding is invalid"
    elif isinstance(error, aiohttp.ClientResponseError):
        reason = "the response is not valid HTTP"
    else:
        reason = " ".join(redact(str(error)).split())
    return f"{type(error).__name__}: {reason}"


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Return a TLS context with the system's certificates and, for containers, certifi's."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
