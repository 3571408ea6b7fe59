"""Strangers at the doors of both servers: pages of other sites, foreign names, slow connections."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
import pytest
import uvicorn
from playwright.sync_api import Page, sync_playwright
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepeyes_plugins.sandbox.server import create_app
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.search.client import Search
from deepeyes_plugins.search.server import SearchServer
from deepeyes_plugins.search.settings import SearchSettings
from deepeyes_plugins.serving.connections import Limits, bounded
from deepeyes_plugins.serving.process import configuration
from tests.serving import LocalServer

LIMITS = Limits(
    head_bytes=4096,
    head_seconds=0.5,
    body_seconds=0.5,
    connections=60,
    connections_per_client=50,
)
TOKEN = "a-token-of-the-tests"


@dataclass
class Served:
    """An application of ours on a free port, with what it answered.

    Attributes:
        app: The application.
        answers: Method, path, ``Origin`` and status of each request so far.
        url: Its address.
    """

    app: ASGIApp
    limits: Limits = LIMITS
    answers: list[tuple[str, str, str, int]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                origin = dict(scope["headers"]).get(b"origin", b"").decode()
                entry = (scope["method"], scope["path"], origin, message["status"])
                self.answers.append(entry)
            await send(message)

        await self.app(scope, receive, noted)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = configuration(self, log_level="error", shutdown_seconds=1)
        config.http = bounded(self.limits)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            assert self._thread.is_alive() and time.monotonic() < deadline
            threading.Event().wait(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    def connect(self, *lines: str) -> socket.socket:
        """Open a connection and send the beginning of a request."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall("\r\n".join(lines).encode())
        return connection


def sandbox(token: str | None = None) -> ASGIApp:
    settings = SandboxSettings(max_sessions=4, spare_sessions=0, image_cache_mb=16)
    return create_app(settings, token=token)


def search(token: str | None = None) -> ASGIApp:
    provider = {"url": "http://127.0.0.1:9", "retries": 0}
    settings = SearchSettings(provider="retriever", providers={"retriever": provider})
    return SearchServer(Search(settings)).app(token)


APPS: dict[str, Callable[..., ASGIApp]] = {"sandbox": sandbox, "search": search}
WORK = {
    "sandbox": ("/jupyter_sandbox", {"session_id": "1", "code": "1 + 1", "timeout": 10}),
    "search": ("/search", {"text": "red panda"}),
}
"""The request of each server that does its work, and what legacy clients send without a token."""
DONE = {"sandbox": 200, "search": 424}


def of_each(token: str | None) -> Iterator[dict[str, Served]]:
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Served(app(token))) for name, app in APPS.items()}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Served]]:
    yield from of_each(None)


@pytest.fixture(scope="module")
def guarded() -> Iterator[dict[str, Served]]:
    yield from of_each(TOKEN)


def send(server: Served, name: str, **headers: str) -> httpx.Response:
    path, body = WORK[name]
    given = {"Content-Type": "application/json"} | {
        key.replace("_", "-"): value for key, value in headers.items()
    }
    with httpx.Client(trust_env=False, timeout=30) as client:
        return client.post(server.url + path, content=json.dumps(body), headers=given)


@pytest.mark.parametrize("name", APPS)
def test_clients_on_this_machine_are_served(name: str, servers: dict[str, Served]) -> None:
    server = servers[name]
    for host in (f"127.0.0.1:{server.port}", f"localhost:{server.port}", "LOCALHOST", "[::1]:1"):
        assert send(server, name, Host=host).status_code == DONE[name]
    typed = {"Content_Type": "application/json; charset=utf-8", "Sec_Fetch_Site": "none"}
    assert send(server, name, **typed).status_code == DONE[name]
    assert send(server, name, Origin=server.url).status_code == DONE[name]
    assert send(server, name, Content_Type="").status_code == DONE[name]


FOREIGN = {
    "another name": ({"Host": "attacker.example"}, 421),
    "another name that ends well": ({"Host": "127.0.0.1.attacker.example"}, 421),
    "another address": ({"Host": "192.0.2.1"}, 421),
    "no valid name": ({"Host": "["}, 421),
    "a page of another site": ({"Origin": "https://attacker.example"}, 403),
    "a page on another port": ({"Origin": "http://127.0.0.1:1"}, 403),
    "a file or a sandboxed frame": ({"Origin": "null"}, 403),
    "a cross-site request": ({"Sec_Fetch_Site": "cross-site"}, 403),
    "a same-site request": ({"Sec_Fetch_Site": "same-site"}, 403),
    "plain text": ({"Content_Type": "text/plain"}, 415),
    "plain text that mentions JSON": ({"Content_Type": "text/plain; application/json"}, 415),
    "a form": ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    "a form with files": ({"Content_Type": "multipart/form-data; boundary=x"}, 415),
}


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize("stranger", FOREIGN)
def test_a_stranger_is_refused(name: str, stranger: str, servers: dict[str, Served]) -> None:
    headers, status = FOREIGN[stranger]
    answer = send(servers[name], name, **headers)
    assert answer.status_code == status and answer.json()["error"]


@pytest.mark.parametrize("name", APPS)
def test_every_route_is_guarded(name: str, servers: dict[str, Served]) -> None:
    paths = {
        "sandbox": {
            "GET": ["/health", "/metrics", "/openapi.json", f"/v1/images/{'0' * 64}", "/nothing"],
            "POST": ["/v1/sessions", "/v1/sessions/1/execute", "/v1/sessions/1/evict"],
            "DELETE": ["/v1/sessions/1"],
        },
        "search": {
            "GET": ["/health", "/metrics", "/nothing"],
            "POST": ["/search", "/image_search", "/retrieve"],
        },
    }
    with httpx.Client(trust_env=False, base_url=servers[name].url) as client:
        for method, path in ((one, path) for one in paths[name] for path in paths[name][one]):
            foreign = client.request(method, path, headers={"Host": "attacker.example"})
            page = client.request(method, path, headers={"Origin": "http://attacker.example"})
            assert (foreign.status_code, page.status_code) == (421, 403), (method, path)


@pytest.mark.parametrize("name", APPS)
def test_with_the_token_the_server_may_have_any_name(name: str, guarded: dict[str, Served]) -> None:
    bearer = f"Bearer {TOKEN}"
    named = send(guarded[name], name, Host="sandbox.cluster.example", Authorization=bearer)
    assert named.status_code == DONE[name]
    page = send(guarded[name], name, Origin="http://attacker.example", Authorization=bearer)
    assert page.status_code == 403
    assert send(guarded[name], name).status_code == 401
    assert send(guarded[name], name, Authorization="Bearer wrong").status_code == 401


@pytest.mark.parametrize("name", APPS)
async def test_who_may_see_the_state_of_a_server(name: str) -> None:
    async def ask(path: str, client: str, **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://192.0.2.5") as http:
            return await http.get(path, headers=headers)

    app = search(TOKEN) if name == "search" else sandbox(TOKEN)
    local = {"Host": "localhost"}
    for client, headers, sees in (
        ("192.0.2.9", {"Authorization": f"Bearer {TOKEN}"}, True),
        ("127.0.0.1", local, True),
        ("192.0.2.9", local, False),  # As from a proxy or a forged header.
    ):
        health = await ask("/health", client, **headers)
        assert health.status_code == 200 and health.json()["status"] in ("ok", "starting")
        assert (set(health.json()) != {"status"}) is sees
        assert ((await ask("/metrics", client, **headers)).status_code == 200) is sees


# --- A real browser -----------------------------------------------------------------------------

ATTACK = """
async ([url, path, body]) => {
  const tell = (kind, promise) => promise.then(r => kind + " " + r.type, e => kind + " " + e.name);
  const simple = (mode, type, content) => fetch(url + path, {
    method: "POST", mode, body: content, headers: type ? {"Content-Type": type} : {}});
  const form = document.createElement("form");
  const frame = document.createElement("iframe");
  frame.name = "target";
  document.body.append(frame, form);
  Object.assign(form, {
    action: url + path, method: "POST", enctype: "text/plain", target: "target"});
  const input = document.createElement("input");
  Object.assign(input, {name: body.slice(0, -1) + ', "x": "', value: '"}'});
  form.append(input);
  form.submit();
  await new Promise(done => frame.addEventListener("load", done, {once: true}));
  navigator.sendBeacon(url + path, body);
  return Promise.all([
    tell("text", simple("no-cors", "text/plain", body)),
    tell("form", simple("no-cors", "application/x-www-form-urlencoded", body)),
    tell("blob", simple("no-cors", "", new Blob([body]))),
    tell("json", simple("cors", "application/json", body)),
    tell("read", fetch(url + "/health")),
    tell("delete", fetch(url + "/v1/sessions/1", {method: "DELETE"})),
  ]);
}
"""


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    rules = "--host-resolver-rules=MAP attacker.example 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", rules])
        yield browser.new_page()
        browser.close()


def html(_: Any) -> HTMLResponse:
    return HTMLResponse("<title>another site</title><body></body>")


def test_no_page_of_another_site_is_obeyed(servers: dict[str, Served], browser_page: Page) -> None:
    with LocalServer(Route("/", html)) as site:
        for name, server in servers.items():
            path, body = WORK[name]
            for origin in (site.root, f"http://attacker.example:{site.port}"):
                server.answers.clear()
                browser_page.goto(origin)
                told = browser_page.evaluate(ATTACK, [server.url, path, json.dumps(body)])
                # The server saw the requests, and did none of the work.
                posted = [one for one in server.answers if one[0] == "POST"]
                assert len(posted) >= 3 and {one[3] for one in posted} <= {403, 415}
                assert {one[3] for one in server.answers} <= {403, 415}
                assert not any(one.endswith((" cors", " basic")) for one in told), told


def test_a_page_whose_name_points_here_is_refused(
    servers: dict[str, Served], browser_page: Page
) -> None:
    for name, server in servers.items():
        path, body = WORK[name]
        browser_page.goto(f"http://attacker.example:{server.port}/health")
        script = """async ([path, body]) => (await fetch(path, {
            method: "POST", body, headers: {"Content-Type": "application/json"}})).status"""
        assert browser_page.evaluate(script, [path, json.dumps(body)]) == 421


# --- Slow and many connections ------------------------------------------------------------------

POST = ("Host: 127.0.0.1", "Content-Type: application/json")


def ending(connection: socket.socket) -> str:
    """What arrives until the server closes the connection."""
    found = b""
    with connection, contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            found += chunk
    return found.decode()


@pytest.mark.parametrize("name", APPS)
def test_an_unfinished_request_is_given_up(name: str, servers: dict[str, Served]) -> None:
    server, post = servers[name], (f"POST {WORK[name][0]} HTTP/1.1", *POST)
    assert ending(server.connect("")) == ""
    assert ending(server.connect("", "", "")) == ""
    assert ending(server.connect("GET /hea")).startswith("HTTP/1.1 408")
    assert ending(server.connect(*post, "Content-Length: 9", "", "{")).startswith("HTTP/1.1 408")
    chunked = server.connect(*post, "Transfer-Encoding: chunked", "", "1", "{", "")
    assert ending(chunked).startswith("HTTP/1.1 408")
    assert ending(server.connect("GET / HTTP/1.1", f"X: {'x' * 5000}")).startswith("HTTP/1.1 431")
    after = server.connect("GET /health HTTP/1.1", "Host: localhost", "", "GET /h")
    assert ending(after).startswith("HTTP/1.1 200"), "the first request was complete"


@pytest.mark.parametrize("name", APPS)
def test_a_head_that_trickles_is_given_up(name: str, servers: dict[str, Served]) -> None:
    started = time.monotonic()
    with servers[name].connect("GET /health HTTP/1.1", "Host: localhost", "") as connection:
        connection.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() < started + 10:
            with contextlib.suppress(TimeoutError, OSError):
                connection.sendall(b"X: y\r\n")
                answer = connection.recv(100)
        assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("name", APPS)
def test_a_client_that_closes_its_side_gets_its_answer(
    name: str, servers: dict[str, Served]
) -> None:
    path, body = WORK[name]
    data = json.dumps(body)
    lines = (f"POST {path} HTTP/1.1", *POST, f"Content-Length: {len(data)}", "", data)
    connection = servers[name].connect(*lines)
    connection.shutdown(socket.SHUT_WR)
    assert ending(connection).startswith(f"HTTP/1.1 {DONE[name]}")


@pytest.mark.parametrize("name", APPS)
def test_idle_clients_do_not_stop_a_server(name: str, servers: dict[str, Served]) -> None:
    server = servers[name]
    with contextlib.ExitStack() as stack:
        for number in range(150):  # Three times what the server allows.
            stack.enter_context(server.connect("GET /health HTTP/1.1" if number % 2 else ""))
        started = time.monotonic()
        assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
        assert time.monotonic() - started < 5


def test_connections_that_are_in_use_are_kept(servers: dict[str, Served]) -> None:
    """Idle ones make room for others; where none is idle, a new one is refused."""
    app = sandbox()
    limits = Limits(connections=3, connections_per_client=2, head_seconds=5)
    cell = json.dumps({"session_id": "1", "code": "import time; time.sleep(1)", "timeout": 10})
    with Served(app, limits) as server:
        lines = ("POST /jupyter_sandbox HTTP/1.1", *POST, f"Content-Length: {len(cell)}", "")
        busy = [server.connect(*lines, cell) for _ in range(2)]
        deadline = time.monotonic() + 10
        while not (refused := ending(server.connect("GET /health HTTP/1.1", "", ""))):
            assert time.monotonic() < deadline
        assert refused.startswith(("HTTP/1.1 503", "HTTP/1.1 421"))
        for connection in busy:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            connection.close()
