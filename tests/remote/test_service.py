"""Remote calls, against a real server on loopback."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from deepeyes_plugins.remote.errors import (
    CircuitOpenError,
    RemoteRefusedError,
    RemoteUnavailableError,
)
from deepeyes_plugins.remote.service import RemoteService, retry_after
from deepeyes_plugins.remote.settings import RemoteSettings
from tests.serving import LocalServer, breaks_off


@dataclass
class Script:
    """Answers in turn, the last one for ever."""

    responses: list[Callable[[], Response]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    release: threading.Event = field(default_factory=threading.Event)
    holds: bool = False

    def say(self, text: str = "{}", status: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.responses.append(lambda: PlainTextResponse(text, status, named))

    async def answer(self, request: Request) -> Response:
        self.requests.append(request)
        self.bodies.append(await request.body())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if self.holds:
            await asyncio.to_thread(self.release.wait)
        self.at_once -= 1
        make = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
        return make()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    with LocalServer(Route("/search", script.answer, methods=["GET", "POST"])) as server:
        yield server.root
        script.release.set()


def service(
    url: str, *, key_env: str | None = None, **settings: Any
) -> AbstractAsyncContextManager[RemoteService]:
    values = {"retry_wait": 0.01, "retry_wait_maximum": 0.05, "retries": 3, **settings}
    key_header = "X-API-KEY" if key_env else "Authorization"
    made = RemoteService(url, RemoteSettings(**values), key_env=key_env, key_header=key_header)
    return aclosing(made)


async def test_json_goes_there_and_comes_back(script: Script, url: str) -> None:
    script.say('{"found": ["é"]}')
    async with service(url + "/") as client:
        reply = await client.fetch("POST", "/search", json={"q": "x"}, params={"page": "2"})

    assert reply.json() == {"found": ["é"]}
    assert json.loads(script.bodies[0]) == {"q": "x"}
    assert script.requests[0].query_params["page"] == "2"


async def test_the_key_goes_into_the_header_of_the_service(
    script: Script, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_KEY", "secret")
    script.say("who are you?", 401)
    async with service(url, key_env="SEARCH_KEY") as client:
        with pytest.raises(RemoteRefusedError, match="variable SEARCH_KEY") as caught:
            await client.fetch("GET", "/search")

    assert caught.value.status == 401
    assert caught.value.text == "who are you?"
    assert script.requests[0].headers["x-api-key"] == "secret"


@pytest.mark.parametrize("status", [400, 402, 403, 404])
async def test_a_refusal_is_not_repeated(script: Script, url: str, status: int) -> None:
    script.say("no", status)
    async with service(url) as client:
        with pytest.raises(RemoteRefusedError, match=f"GET {url}/search: HTTP {status}: no"):
            await client.fetch("GET", "/search")
        assert client.statistics.snapshot().refused == 1
    assert len(script.requests) == 1


async def test_passing_trouble_is_repeated(script: Script, url: str) -> None:
    script.say("busy", 503)
    script.say("slow down", 429, Retry_After="0.02")
    script.say("here")
    async with service(url) as client:
        assert (await client.fetch("GET", "/search")).text == "here"
        counted = client.statistics.snapshot()
    assert (counted.requests, counted.answered, counted.unavailable) == (3, 1, 2)
    assert 0 < counted.p50 <= counted.p95 <= counted.slowest


async def test_it_waits_as_long_as_the_server_asks(script: Script, url: str) -> None:
    script.say("slow down", 429, Retry_After="0.4")
    script.say("here")
    async with service(url, retry_wait_maximum=5) as client:
        started = time.monotonic()
        await client.fetch("GET", "/search")
    assert time.monotonic() - started >= 0.4


async def test_the_last_reason_is_told(script: Script, url: str) -> None:
    script.say("slow down", 429, Retry_After="7")
    async with service(url, retries=1) as client:
        with pytest.raises(RemoteUnavailableError) as caught:
            await client.fetch("GET", "/search")
    assert str(caught.value) == (
        f"GET {url}/search failed in 2 attempts, last error: HTTP 429: slow down"
    )
    assert (caught.value.status, caught.value.retry_after) == (429, 7)


async def test_an_endless_answer_is_cut_off(script: Script, url: str) -> None:
    script.say("x" * 300_000)
    async with service(url, max_response_mb=0.1) as client:
        with pytest.raises(RemoteRefusedError, match=r"larger than 0\.1 MiB"):
            await client.fetch("GET", "/search")


async def test_a_server_that_never_answers_is_given_up(script: Script, url: str) -> None:
    script.holds = True
    script.say()
    async with service(url, timeout=0.1, retries=0) as client:
        with pytest.raises(RemoteUnavailableError, match=r"no complete response within 0\.1 s"):
            await client.fetch("GET", "/search")
        script.release.set()


async def test_no_more_than_allowed_at_a_time(script: Script, url: str) -> None:
    script.holds = True
    script.say()
    async with service(url, concurrency=3) as client:
        calls = [asyncio.create_task(client.fetch("GET", "/search")) for _ in range(9)]
        while len(script.requests) < 3:
            await asyncio.sleep(0)
        script.release.set()
        await asyncio.gather(*calls)
    assert script.most_at_once == 3
    assert len(script.requests) == 9


async def test_no_more_than_allowed_per_second(script: Script, url: str) -> None:
    script.say()
    async with service(url, rate=10) as client:
        started = time.monotonic()
        await asyncio.gather(*(client.fetch("GET", "/search") for _ in range(14)))
    # Ten at once, then one each tenth of a second.
    assert time.monotonic() - started >= 0.35


async def test_the_circuit_of_a_server_that_keeps_failing_opens(script: Script, url: str) -> None:
    script.say("broken", 500)
    async with service(url, retries=0, circuit_failures=2, circuit_seconds=60) as client:
        for _ in range(2):
            with pytest.raises(RemoteUnavailableError, match="HTTP 500"):
                await client.fetch("GET", "/search")
        with pytest.raises(CircuitOpenError, match="circuit open"):
            await client.fetch("GET", "/search")
        assert client.statistics.snapshot().held_back == 1
    assert len(script.requests) == 2


async def test_who_is_not_let_through_does_not_wait_for_a_turn(script: Script, url: str) -> None:
    script.say("broken", 500)
    settings = {"retries": 0, "circuit_failures": 1, "circuit_seconds": 60, "rate": 0.1}
    async with service(url, **settings) as client:
        with pytest.raises(RemoteUnavailableError, match="HTTP 500"):
            await client.fetch("GET", "/search")
        async with asyncio.timeout(5):
            for _ in range(3):
                with pytest.raises(CircuitOpenError):
                    await client.fetch("GET", "/search")
        assert client.statistics.snapshot().held_back == 3


async def test_the_circuit_closes_when_the_server_is_back(script: Script, url: str) -> None:
    script.say("broken", 500)
    script.say("broken", 500)
    script.say("back")
    settings = {"circuit_failures": 2, "circuit_seconds": 0.05, "retries": 5}
    async with service(url, **settings) as client:
        assert (await client.fetch("GET", "/search")).text == "back"
        assert not client.circuit.is_open


async def test_nobody_there_is_said_with_the_address() -> None:
    with LocalServer() as server:
        gone = server.root
    async with service(gone, retries=0) as client:
        with pytest.raises(RemoteUnavailableError, match=f"GET {gone}/search failed: .*Cannot"):
            await client.fetch("GET", "/search")


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("3", 3),
        ("0.5", 0.5),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30),
        ("Thu, 01 Jan 2026 00:00:30 -0000", 30),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
        ("-1", 0),
        ("inf", 0),
        ("nan", 0),
        ("soon", 0),
    ],
)
def test_what_retry_after_says(value: str | None, seconds: float) -> None:
    assert retry_after(value, NOW) == seconds


async def test_a_redirect_is_refused_with_its_target(script: Script, url: str) -> None:
    script.say("moved", 302, Location="https://elsewhere.example/search")
    async with service(url) as client:
        with pytest.raises(RemoteRefusedError, match=r"redirects to https://elsewhere\.example"):
            await client.fetch("GET", "/search")
    assert len(script.requests) == 1


async def test_a_caller_knows_which_trouble_does_not_pass(script: Script, url: str) -> None:
    script.say("run out", 429)
    async with service(url) as client:
        with pytest.raises(RemoteRefusedError, match="HTTP 429: run out"):
            await client.call(
                "GET", "/search", lambda reply: reply, is_final=lambda reply: "out" in reply.text
            )
    assert len(script.requests) == 1


async def test_a_key_in_the_query_stays_out_of_the_log(
    script: Script,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SOME_KEY", "secret-1\n")  # As `$(cat file)` leaves it in some shells.
    script.say("busy", 503)
    script.say("here")
    caplog.set_level("DEBUG")
    settings = RemoteSettings(retry_wait=0.01)
    made = RemoteService(url, settings, key_env="SOME_KEY", key_parameter="key")
    async with aclosing(made) as client:
        await client.fetch("GET", "/search", params={"q": "x"})
    assert dict(script.requests[0].query_params) == {"key": "secret-1", "q": "x"}
    assert "busy" in caplog.text and "secret-1" not in caplog.text


async def test_a_key_that_no_header_can_carry_is_told(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "two\nlines")
    async with service(url, key_env="SOME_KEY") as client:
        with pytest.raises(RemoteRefusedError, match="is the key in SOME_KEY right"):
            await client.fetch("GET", "/search")


async def test_it_goes_through_the_proxy_of_the_environment(
    script: Script, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.say("by proxy")
    monkeypatch.setenv("http_proxy", url)
    async with service("http://engine.example") as client:
        assert (await client.fetch("GET", "/search")).text == "by proxy"
    assert script.requests[0].headers["host"] == "engine.example"
    monkeypatch.setenv("no_proxy", "engine.example")
    async with service("http://engine.example", retries=0) as client:
        with pytest.raises(RemoteUnavailableError):
            await client.fetch("GET", "/search")
    assert len(script.requests) == 1


async def test_an_answer_that_breaks_off_is_asked_for_again(script: Script, url: str) -> None:
    script.responses.append(breaks_off)
    script.say("whole")
    async with service(url) as client:
        assert (await client.fetch("GET", "/search")).text == "whole"
    assert len(script.requests) == 2
