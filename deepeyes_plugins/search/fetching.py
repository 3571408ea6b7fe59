"""HTTP fetcher with protection against server-side request forgery (SSRF).

URLs come from models, pages and search engines and are not trusted: a host name may resolve to this
machine or its private network, directly, after a redirect, or at a second lookup (DNS rebinding).
Therefore each name is resolved once, all its addresses are checked, and the connection goes to a
checked address. Any notation of an address (decimal, octal, hexadecimal, mapped into IPv6) is
resolved to the same number before the check.

Proxies of the environment are not used, since they resolve names themselves.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from urllib.parse import urljoin

import httpcore
import httpx

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_LONGEST_URL = 2048
_THUMBNAIL_BYTES = 10 << 20
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
# Networks that some versions of `ipaddress` consider public.
_NEVER: tuple[IPNetwork, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",
            "100.64.0.0/10",
            "192.0.0.0/24",
            "192.88.99.0/24",
            "198.18.0.0/15",
            "240.0.0.0/4",
            "100::/64",
            "2001::/23",
            "2001:db8::/32",
            "3fff::/20",
            "5f00::/16",
            "fec0::/10",
        ),
    )
)


class FetchError(Exception):
    """A URL cannot be fetched; the message may be shown to the model."""


class FetchRefusedError(FetchError):
    """The address, size or content type is not allowed; a retry does not help."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetched document.

    Attributes:
        url: URL after redirects.
        content_type: For instance ``text/html``, lower case, without parameters.
        charset: Character set that the server declares; empty if none.
        body: The bytes.
    """

    url: str
    content_type: str
    charset: str
    body: bytes


def is_public(address: IPAddress) -> bool:
    """Return whether an address belongs to the public internet.

    Of IPv6 addresses that embed an IPv4 address (mapped, compatible, 6to4, Teredo, NAT64), the
    IPv4 address is checked.
    """
    if isinstance(address, ipaddress.IPv6Address):
        embedded = _embedded(address)
        if embedded:
            return all(map(is_public, embedded))
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address.version == one.version and address in one for one in _NEVER)
    )


def _embedded(address: ipaddress.IPv6Address) -> list[IPAddress]:
    """Return the IPv4 addresses that an IPv6 address embeds."""
    number = int(address)
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return list(address.teredo)
    if any(address in network for network in _NAT64) or number >> 32 == 0:
        return [ipaddress.IPv4Address(number & 0xFFFFFFFF)]
    return []


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Network backend that connects to checked addresses only."""

    def __init__(self, allowed: Iterable[IPNetwork], threads: Executor) -> None:
        self._allowed = tuple(allowed)
        self._threads = threads
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve the host, check all its addresses, and connect to one."""
        addresses = await self._resolve(host, port)
        for address in addresses:
            if not self._is_allowed(address):
                raise FetchRefusedError(f"{host} is not a public address")
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._network.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Refuse the connection."""
        raise FetchRefusedError("not a public address")

    async def sleep(self, seconds: float) -> None:
        """Sleep, for retries of httpcore."""
        await asyncio.sleep(seconds)

    def _is_allowed(self, address: IPAddress) -> bool:
        return is_public(address) or any(
            address.version == one.version and address in one for one in self._allowed
        )

    async def _resolve(self, host: str, port: int) -> list[IPAddress]:
        try:
            # Not in the event loop's default executor, which lookups that time out would block.
            found = await asyncio.get_running_loop().run_in_executor(
                self._threads, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError) as error:
            raise FetchError(f"{host} cannot be resolved ({error})") from error
        # An IPv6 address may have a scope id.
        return list(
            dict.fromkeys(ipaddress.ip_address(one[4][0].split("%")[0]) for one in found)  # type: ignore[union-attr]
        )


@dataclass(frozen=True)
class FetchRules:
    """Limits of a fetcher.

    Attributes:
        content_types: Allowed content types, or prefixes of them (``text/``).
        most_bytes: Maximum size of a body.
        seconds: Time limit, redirects included.
        ports: Allowed ports; empty for all.
        allowed: Private networks that are allowed nevertheless.
        at_once: Maximum number of concurrent requests.
        agent: Value of the ``User-Agent`` header.
    """

    content_types: tuple[str, ...]
    most_bytes: int
    seconds: float = 20.0
    ports: tuple[int, ...] = (80, 443)
    allowed: tuple[IPNetwork, ...] = ()
    at_once: int = 16
    agent: str = "deepeyes-plugins"


def thumbnail_rules(
    *,
    seconds: float = 10.0,
    ports: tuple[int, ...] = (80, 443),
    allowed: tuple[IPNetwork, ...] = (),
) -> FetchRules:
    """Return the limits for downloads of thumbnails."""
    return FetchRules(("image/",), _THUMBNAIL_BYTES, seconds, ports, allowed)


class Fetcher:
    """Fetches by HTTP and HTTPS; belongs to one event loop."""

    def __init__(self, rules: FetchRules) -> None:
        self._rules = rules
        self._slots = asyncio.Semaphore(rules.at_once)
        self._opening = asyncio.Lock()
        self._pool: httpcore.AsyncConnectionPool | None = None
        self._threads: ThreadPoolExecutor | None = None

    async def fetch(self, url: str) -> Fetched:
        """Fetch ``url``, following redirects.

        Raises:
            FetchRefusedError: The address, content type or size is not allowed.
            FetchError: The server cannot be reached or returns an error.
        """
        try:
            # Waiting for a free slot does not count against the time limit.
            async with self._slots, asyncio.timeout(self._rules.seconds):
                for _ in range(_MOST_REDIRECTS + 1):
                    answer = await self._once(url)
                    if isinstance(answer, Fetched):
                        return answer
                    url = answer
        except TimeoutError as error:
            raise FetchError(f"no answer within {self._rules.seconds:g} s") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise FetchError(f"no answer ({type(error).__name__})") from error
        except OSError as error:  # TLS errors about certificates.
            raise FetchError(f"no connection ({error})") from error
        raise FetchError(f"more than {_MOST_REDIRECTS} redirects")

    async def aclose(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    async def _connections(self) -> httpcore.AsyncConnectionPool:
        """Return the connection pool, created by the first request."""
        async with self._opening:
            if self._pool is None:
                # In a thread, since reading all certificates is slow.
                context = await asyncio.to_thread(httpx.create_ssl_context, trust_env=False)
                self._threads = ThreadPoolExecutor(
                    self._rules.at_once, thread_name_prefix="deepeyes-names"
                )
                self._pool = httpcore.AsyncConnectionPool(
                    ssl_context=context,
                    max_connections=self._rules.at_once,
                    network_backend=_CheckedBackend(self._rules.allowed, self._threads),
                )
        return self._pool

    async def _once(self, url: str) -> Fetched | str:
        """Make one request; return the target of a redirect as a string."""
        rules = self._rules
        target = self._checked(url)
        pool = await self._connections()
        headers = [
            ("Host", target.netloc.decode("ascii")),
            ("User-Agent", rules.agent),
            (
                "Accept",
                ", ".join(one + "*" if one.endswith("/") else one for one in rules.content_types),
            ),
            # A small compressed body could expand to one that fills the memory.
            ("Accept-Encoding", "identity"),
        ]
        # Passed in parts, so that httpcore does not parse the URL again by other rules.
        address = httpcore.URL(
            scheme=target.raw_scheme,
            host=target.raw_host,
            port=target.port,
            target=target.raw_path,
        )
        async with pool.stream("GET", address, headers=headers) as response:
            given = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in response.headers
            }
            if response.status in _REDIRECTS and "location" in given:
                try:
                    return urljoin(url, given["location"])
                except ValueError as error:
                    raise FetchRefusedError(f"redirect to an invalid URL: {error}") from error
            if response.status != 200:
                raise FetchError(f"the server returned HTTP {response.status}")
            return await self._body(str(target), response, given)

    async def _body(
        self, url: str, response: httpcore.Response, headers: dict[str, str]
    ) -> Fetched:
        rules = self._rules
        kind, _, parameters = headers.get("content-type", "").partition(";")
        kind = kind.strip().lower()
        if not any(
            kind == one or (one.endswith("/") and kind.startswith(one))
            for one in rules.content_types
        ):
            raise FetchRefusedError(f"the content type {kind or 'unknown'!r} is not allowed")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise FetchRefusedError("the server returned a compressed body")
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > rules.most_bytes:
                raise FetchRefusedError(f"larger than {rules.most_bytes} bytes")
        charset = parameters.partition("charset=")[2].partition(";")[0].strip("\"' ").lower()
        return Fetched(url, kind, charset, bytes(body))

    def _checked(self, url: str) -> httpx.URL:
        """Check scheme, host, user name, port and length of a URL, before its host is resolved."""
        if len(url) > _LONGEST_URL:
            raise FetchRefusedError(f"the URL is longer than {_LONGEST_URL} characters")
        try:
            target = httpx.URL(url.strip())
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise FetchRefusedError(f"not a valid URL: {error}") from error
        if target.scheme not in ("http", "https"):
            raise FetchRefusedError(
                f"expected an http or https URL, not one of scheme {target.scheme!r}"
            )
        if not target.host:
            raise FetchRefusedError("the URL has no host")
        if target.userinfo:
            raise FetchRefusedError("URLs with a user name are not allowed")
        port = target.port if target.port is not None else (443 if target.scheme == "https" else 80)
        if not 0 < port < 65536 or (self._rules.ports and port not in self._rules.ports):
            raise FetchRefusedError(f"port {port} is not allowed")
        return target
