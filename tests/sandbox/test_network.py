"""Sessions and the network: closed, unless the settings open it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deepeyes_plugins.sandbox import EmbeddedServer, SandboxClient, SandboxSettings, start_server


class _Greeting(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a web server on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Greeting) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield web.server_address[1]
        web.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def networked() -> Iterator[EmbeddedServer]:
    with start_server(SandboxSettings(allow_network=True)) as running:
        yield running


FETCHES = {
    "a socket": (
        "import socket\n"
        "with socket.create_connection(('127.0.0.1', {port}), 5) as s:\n"
        "    s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
        "    answer = b''.join(iter(lambda: s.recv(999), b''))\n"
        "answer[-5:].decode()"
    ),
    "urllib": (
        "import urllib.request\n"
        "urllib.request.urlopen('http://127.0.0.1:{port}', timeout=5).read().decode()"
    ),
}


@pytest.mark.parametrize("code", FETCHES.values(), ids=FETCHES.keys())
async def test_an_open_network_can_be_used(networked: EmbeddedServer, port: int, code: str) -> None:
    async with (
        SandboxClient(networked.url, token=networked.token) as client,
        await client.create_session() as session,
    ):
        result = await session.execute(code.format(port=port), 20)
        assert result.result == "'hello'", result.stderr


@pytest.mark.parametrize("code", FETCHES.values(), ids=FETCHES.keys())
async def test_a_closed_network_cannot(client: SandboxClient, port: int, code: str) -> None:
    async with await client.create_session() as session:
        result = await session.execute(code.format(port=port), 20)
        assert result.outcome == "error" and "Operation not permitted" in result.stderr


async def test_an_open_network_is_the_internet_and_nothing_else(networked: EmbeddedServer) -> None:
    # 2 and 10 are the internet protocols; raw and packet sockets would read what others send.
    code = (
        "import itertools, socket\n"
        "made = set()\n"
        "for family, kind in itertools.product(range(51), (1, 2, 3, 5, 10)):\n"
        "    try: socket.socket(family, kind).close()\n"
        "    except OSError: continue\n"
        "    made.add((family, kind))\n"
        "sorted(made)"
    )
    async with (
        SandboxClient(networked.url, token=networked.token) as client,
        await client.create_session() as session,
    ):
        made = eval((await session.execute(code, 20)).result)
    assert {(2, 1), (2, 2)} <= set(made)
    assert {family for family, _ in made} <= {2, 10}
    assert not {kind for _, kind in made} & {3, 10}


async def test_health_says_which(networked: EmbeddedServer, client: SandboxClient) -> None:
    async with SandboxClient(networked.url, token=networked.token) as other:
        health = await other.health()
    assert health.notes["network"].startswith("open") and health.isolated
    assert (await client.health()).notes["network"] == "closed"
