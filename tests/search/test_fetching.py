"""Nothing private is fetched, in whatever shape its address comes."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from deepeyes_plugins.search.fetching import (
    Fetcher,
    FetchError,
    FetchRefusedError,
    FetchRules,
    is_public,
)
from tests.serving import LocalServer

PAGE = b"<html><body>hello</body></html>"
HOME = ipaddress.ip_network("127.0.0.1/32")


async def page(request: Request) -> Response:
    return Response(PAGE, media_type="text/html; charset=ISO-8859-1")


async def echo(request: Request) -> Response:
    """Answers as the query says: what body, kind, encoding, status."""
    ask = request.query_params
    headers = {"Content-Encoding": ask["encoding"]} if "encoding" in ask else {}
    body = zlib.compress(PAGE) if "encoding" in ask else PAGE
    return Response(body, int(ask.get("status", 200)), headers, ask.get("kind", "text/html"))


async def elsewhere(request: Request) -> Response:
    return RedirectResponse(request.query_params["to"], int(request.query_params.get("code", 302)))


async def endless(request: Request) -> Response:
    async def body() -> AsyncIterator[bytes]:
        while not await request.is_disconnected():
            yield b"x" * 65536

    return StreamingResponse(body(), media_type="text/html")


async def never(request: Request) -> Response:
    while not await request.is_disconnected():
        await asyncio.sleep(0.05)
    return Response()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    routes = [
        Route(f"/{handler.__name__}", handler)
        for handler in (page, echo, elsewhere, endless, never)
    ]
    with LocalServer(*routes) as running:
        yield running


def rules(**changes: Any) -> FetchRules:
    return FetchRules(
        **{"content_types": ("text/",), "most_bytes": 100_000, "ports": (), **changes}
    )


@pytest.fixture
async def home() -> AsyncIterator[Fetcher]:
    """May fetch from 127.0.0.1, and from no other private address."""
    fetcher = Fetcher(rules(allowed=(HOME,)))
    yield fetcher
    await fetcher.aclose()


async def test_a_page_is_fetched(home: Fetcher, server: LocalServer) -> None:
    found = await home.fetch(f"{server.root}/page#part")
    assert (found.body, found.content_type, found.charset) == (PAGE, "text/html", "iso-8859-1")


async def test_redirects_are_followed(home: Fetcher, server: LocalServer) -> None:
    found = await home.fetch(f"{server.root}/elsewhere?to=/elsewhere?to=/page")
    assert found.url == f"{server.root}/page"


PRIVATE = [
    "127.0.0.1",
    "127.1",
    "127.255.255.254",
    "2130706433",
    "0x7f000001",
    "0x7f.0x0.0x0.0x1",
    "0177.0.0.1",
    "017700000001",
    "0",
    "0.0.0.0",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:169.254.169.254]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1::]",
    "[fe80::1]",
    "[fe80::1%25lo]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fec0::1]",
    "[ff02::1]",
]


@pytest.mark.parametrize("host", PRIVATE)
async def test_private_addresses_are_refused(host: str, server: LocalServer) -> None:
    fetcher = Fetcher(rules(seconds=5))
    with pytest.raises(FetchError) as caught:
        await fetcher.fetch(f"http://{host}:{server.port}/page")
    await fetcher.aclose()
    # Some of them are names that this machine's resolver does not know, or that are no host at all.
    assert isinstance(caught.value, FetchRefusedError) or "cannot be resolved" in str(caught.value)


SHAPES = [
    "file:///etc/passwd",
    "ftp://127.0.0.1/",
    "gopher://127.0.0.1:70/_",
    "data:text/html,hello",
    "javascript:alert(1)",
    "unix:///var/run/docker.sock",
    "//127.0.0.1/page",
    "/page",
    "page",
    "",
    "http://",
    "http:///page",
    "http://example.com@127.0.0.1/",
    "http://user:password@example.com/",
    "http://exa mple.com/",
    "http://[::1/",
    "http://example.com:99999/",
    "http://" + "a" * 3000,
    "http://\x00/",
    "http://\ud800/",
    "http://example.com/\r\nX-Header: 1",
]


@pytest.mark.parametrize("url", SHAPES, ids=range(len(SHAPES)))
async def test_odd_addresses_are_refused(home: Fetcher, url: str) -> None:
    with pytest.raises(FetchError):
        await home.fetch(url)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    async def fetch() -> None:
        fetcher = Fetcher(rules(seconds=0.01))
        with pytest.raises(FetchError):
            await fetcher.fetch(f"http://{text}.invalid/")
        await fetcher.aclose()

    asyncio.run(fetch())


@pytest.mark.parametrize(
    "place",
    [
        "http://127.0.0.2:{port}/page",
        "http://2130706434:{port}/page",
        "http://[::1]:{port}/page",
        "http://[::ffff:127.0.0.2]:{port}/page",
        "http://169.254.169.254/latest/meta-data/",
        "//127.0.0.2:{port}/page",
        "http://[::1",
        "file:///etc/passwd",
        "http://user@127.0.0.1:{port}/page",
        "/elsewhere?to=http://127.0.0.2:{port}/page",
    ],
)
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirects_to_private_addresses_are_refused(
    home: Fetcher, server: LocalServer, place: str, code: int
) -> None:
    with pytest.raises(FetchRefusedError):
        await home.fetch(f"{server.root}/elsewhere?code={code}&to={place.format(port=server.port)}")


def resolve(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let every look-up give the next answer; returns the names that were looked up."""
    asked: list[str] = []
    known = socket.getaddrinfo

    def lookup(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        if host != "rebinding.test":
            return known(host, port, *rest, **options)
        asked.append(host)
        addresses = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked


async def test_a_name_is_looked_up_once_and_what_was_checked_is_connected_to(
    home: Fetcher, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolve(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
    found = await home.fetch(f"http://rebinding.test:{server.port}/page")
    assert (found.body, len(asked)) == (PAGE, 1)


@pytest.mark.parametrize(
    "answer", [["127.0.0.2"], ["127.0.0.1", "127.0.0.2"], ["93.184.216.34", "10.0.0.1"]]
)
async def test_a_name_with_a_private_address_is_refused(
    home: Fetcher, monkeypatch: pytest.MonkeyPatch, answer: list[str]
) -> None:
    resolve(monkeypatch, answer)
    with pytest.raises(FetchRefusedError, match=r"rebinding\.test is not a public address"):
        await home.fetch("http://rebinding.test/")


async def test_names_that_nobody_answers_for_hold_up_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *name, **options: release.wait() and [])
    fetcher = Fetcher(rules(at_once=64))
    fetching = [asyncio.create_task(fetcher.fetch("http://silent.test/")) for _ in range(64)]
    try:
        await asyncio.wait(fetching, timeout=0.2)
        await asyncio.wait_for(asyncio.to_thread(bool), 2)
    finally:
        release.set()
        await asyncio.gather(*fetching, return_exceptions=True)
        await fetcher.aclose()


@pytest.mark.parametrize(
    ("address", "public"),
    [("93.184.216.34", True), ("2606:2800:220:1::1", True), ("2002:5db8:d822::", True),
     ("64:ff9b::5db8:d822", True), ("2002:a00:1::", False), ("240.0.0.1", False),
     ("2001:db8::1", False), ("192.0.0.8", False)],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@given(st.ip_addresses(v=4))
def test_an_address_within_ipv6_is_as_public_as_itself(address: ipaddress.IPv4Address) -> None:
    public = is_public(address)
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        inside = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | int(address))
        assert is_public(inside) is public
    assert is_public(ipaddress.IPv6Address(0x2002 << 112 | int(address) << 80)) is public
    assert not public or address.is_global


class TestAnswers:
    @pytest.mark.parametrize(
        "kind", ["application/pdf", "image/png", "", "text", "application/text/"]
    )
    async def test_of_other_kinds_are_refused(
        self, home: Fetcher, server: LocalServer, kind: str
    ) -> None:
        with pytest.raises(FetchRefusedError, match="content type"):
            await home.fetch(f"{server.root}/echo?kind={kind}")

    async def test_without_end_are_cut_off(self, home: Fetcher, server: LocalServer) -> None:
        with pytest.raises(FetchRefusedError, match="larger than 100000 bytes"):
            await home.fetch(f"{server.root}/endless")

    async def test_that_are_compressed_unasked_are_refused(
        self, home: Fetcher, server: LocalServer
    ) -> None:
        with pytest.raises(FetchRefusedError, match="compressed"):
            await home.fetch(f"{server.root}/echo?encoding=deflate")

    @pytest.mark.parametrize("status", [204, 401, 404, 500])
    async def test_that_are_none_say_so(
        self, home: Fetcher, server: LocalServer, status: int
    ) -> None:
        with pytest.raises(FetchError, match=f"HTTP {status}"):
            await home.fetch(f"{server.root}/echo?status={status}")

    async def test_that_do_not_come_are_given_up(self, server: LocalServer) -> None:
        fetcher = Fetcher(rules(allowed=(HOME,), seconds=0.2))
        with pytest.raises(FetchError, match=r"no answer within 0\.2 s"):
            await fetcher.fetch(f"{server.root}/never")
        await fetcher.aclose()

    async def test_that_lead_nowhere_are_given_up(self, home: Fetcher, server: LocalServer) -> None:
        with pytest.raises(FetchError, match="more than 5 redirects"):
            loop = f"{server.root}/elsewhere?to="
            await home.fetch(loop + loop + loop + loop + loop + loop + loop)

    async def test_ports_may_be_limited(self, server: LocalServer) -> None:
        fetcher = Fetcher(rules(allowed=(HOME,), ports=(80, 443)))
        with pytest.raises(FetchRefusedError, match=f"port {server.port}"):
            await fetcher.fetch(f"{server.root}/page")

    async def test_a_server_that_is_gone_says_so(self, home: Fetcher) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(FetchError, match="no answer"):
                await home.fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/")
