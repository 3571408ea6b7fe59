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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from urllib.parse import urljoin

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from deepeyes_plugins.remote.http import open_session

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


class _CheckedNetwork(AbstractResolver):
    """Resolves names, and allows connections to checked addresses only."""

    def __init__(self, allowed: Iterable[IPNetwork], threads: int) -> None:
        self._allowed = tuple(allowed)
        # Not the event loop's default executor, which lookups that time out would block.
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="deepeyes-names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolve a host and check all its addresses."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._threads, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError) as error:
            raise FetchError(f"{host} cannot be resolved ({error})") from error
        if not found:
            raise FetchError(f"{host} has no address")
        addresses = [str(one[4][0]) for one in found]
        for address in addresses:
            self.check(address, host)
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=one[0], proto=one[2], flags=0
            )
            for one, address in zip(found, addresses, strict=True)
        ]

    def check(self, address: str, host: str = "") -> None:
        """Check an address, also one that a URL contains instead of a name.

        Raises:
            FetchRefusedError: It is neither public nor in an allowed network.
        """
        number = ipaddress.ip_address(address.split("%")[0])  # An IPv6 address may have a scope id.
        if not is_public(number) and not any(
            number.version == one.version and number in one for one in self._allowed
        ):
            raise FetchRefusedError(f"{host or address} is not a public address")

    async def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


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
        self._network = _CheckedNetwork(rules.allowed, rules.at_once)
        self._http: aiohttp.ClientSession | None = None

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
        except aiohttp.InvalidURL as error:
            raise FetchRefusedError(f"not a valid URL: {error}") from error
        except aiohttp.ClientSSLError as error:
            raise FetchError(f"no connection ({error})") from error
        except aiohttp.ClientError as error:
            raise FetchError(f"no answer ({type(error).__name__})") from error
        raise FetchError(f"more than {_MOST_REDIRECTS} redirects")

    async def aclose(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()
        await self._network.close()

    def _session(self) -> aiohttp.ClientSession:
        """Return the connection pool, created by the first request."""
        if self._http is None:
            rules = self._rules
            kinds = ", ".join(
                one + "*" if one.endswith("/") else one for one in rules.content_types
            )
            # A small compressed body could expand to one that fills the memory.
            headers = {"User-Agent": rules.agent, "Accept": kinds, "Accept-Encoding": "identity"}
            self._http = open_session(
                tls=True,
                headers=headers,
                resolver=self._network,
                check=self._network.check,
                decompress=False,
            )
        return self._http

    async def _once(self, url: str) -> Fetched | str:
        """Make one request; return the target of a redirect as a string."""
        target = self._checked(url)
        async with self._session().get(target, allow_redirects=False) as response:
            if response.status in _REDIRECTS and "Location" in response.headers:
                try:
                    return urljoin(url, response.headers["Location"])
                except ValueError as error:
                    raise FetchRefusedError(f"redirect to an invalid URL: {error}") from error
            if response.status != 200:
                raise FetchError(f"the server returned HTTP {response.status}")
            return await self._body(str(target), response)

    async def _body(self, url: str, response: aiohttp.ClientResponse) -> Fetched:
        rules, headers = self._rules, response.headers
        kind, _, parameters = headers.get("Content-Type", "").partition(";")
        kind = kind.strip().lower()
        if not any(
            kind == one or (one.endswith("/") and kind.startswith(one))
            for one in rules.content_types
        ):
            raise FetchRefusedError(f"the content type {kind or 'unknown'!r} is not allowed")
        if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise FetchRefusedError("the server returned a compressed body")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > rules.most_bytes:
                raise FetchRefusedError(f"larger than {rules.most_bytes} bytes")
        charset = parameters.partition("charset=")[2].partition(";")[0].strip("\"' ").lower()
        return Fetched(url, kind, charset, bytes(body))

    def _checked(self, url: str) -> yarl.URL:
        """Check scheme, host, user name, port and length of a URL, before its host is resolved."""
        if len(url) > _LONGEST_URL:
            raise FetchRefusedError(f"the URL is longer than {_LONGEST_URL} characters")
        url = url.strip()
        if any(character.isascii() and not character.isprintable() for character in url):
            raise FetchRefusedError("not a valid URL: it contains control characters")
        try:
            target = yarl.URL(url)
            port = target.port or 0
        except ValueError as error:
            raise FetchRefusedError(f"not a valid URL: {error}") from error
        if target.scheme not in ("http", "https"):
            raise FetchRefusedError(
                f"expected an http or https URL, not one of scheme {target.scheme!r}"
            )
        if not target.host:
            raise FetchRefusedError("the URL has no host")
        if target.raw_user is not None or target.raw_password is not None:
            raise FetchRefusedError("URLs with a user name are not allowed")
        if not 0 < port < 65536 or (self._rules.ports and port not in self._rules.ports):
            raise FetchRefusedError(f"port {port} is not allowed")
        return target
