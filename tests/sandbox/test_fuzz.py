"""Ten thousand requests that mean nothing: none is a server error, and sessions live on."""

from __future__ import annotations

import asyncio
import json
import random
import string
from collections import Counter
from collections.abc import Callable

import pytest

from deepeyes_plugins.sandbox import EmbeddedServer, SandboxClient, SandboxSettings, start_server

REQUESTS = 10_000
CONNECTIONS = 16
ANSWER_SECONDS = 20
SETTINGS = SandboxSettings(max_sessions=12, memory_mb=256, cell_timeout=1, interrupt_grace=0.5)
EXPECTED = {200, 201, 204, 400, 401, 404, 405, 409, 413, 415, 421, 422, 431, 503}

DIGEST = "0" * 64
TARGETS = (
    *(("POST", "/v1/sessions"), ("POST", "/v1/sessions/0-0/execute")),
    *(("POST", "/v1/sessions/0-0/interrupt"), ("POST", "/v1/sessions/0-0/evict")),
    *(("DELETE", "/v1/sessions/0-0"), ("PUT", f"/v1/images/{DIGEST}")),
    *(("GET", f"/v1/images/{DIGEST}"), ("POST", "/jupyter_sandbox"), ("POST", "/clear_session")),
    *(("GET", "/health"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("BREW", "/coffee")),
    *(("GET", "/v1/sessions"), ("PATCH", f"/v1/images/{DIGEST}")),
)
KEYS = ("images", "code", "timeout", "cell", "session_id", "", "\ud800", "__class__")


def scalar(dice: random.Random) -> object:
    return dice.choice(
        (
            *(None, True, -1, 0, 1, 2**63, -(2**200), 10**4000, 1e308, float("nan"), float("inf")),
            *("", "1", "x = 1", "\0", "\ud800", "🦅", "9" * 50, DIGEST, "../../x", [], {}),
            dice.random(),
        )
    )


def value(dice: random.Random, depth: int = 0) -> object:
    kind = dice.random()
    if depth > 3 or kind < 0.6:
        return scalar(dice)
    if kind < 0.8:
        return [value(dice, depth + 1) for _ in range(dice.randrange(5))]
    return {dice.choice(KEYS): value(dice, depth + 1) for _ in range(dice.randrange(4))}


def fields(dice: random.Random) -> bytes:
    """An object with the right keys and anything for values."""
    chosen = dice.sample(KEYS, dice.randrange(len(KEYS)))
    return json.dumps({key: value(dice) for key in chosen}).encode()


def anything(dice: random.Random) -> bytes:
    return json.dumps(value(dice)).encode()


def noise(dice: random.Random) -> bytes:
    return dice.randbytes(dice.randrange(200))


def truncated(dice: random.Random) -> bytes:
    whole = fields(dice)
    return whole[: dice.randrange(len(whole) + 1)]


def nested(dice: random.Random) -> bytes:
    return dice.choice((b"[", b'{"code":', b'{"images":[')) * dice.choice((10, 10_000))


def huge(dice: random.Random) -> bytes:
    return b'{"timeout": ' + b"9" * dice.choice((10, 5_000, 100_000)) + b"}"


BODIES: tuple[Callable[[random.Random], bytes], ...] = (
    *(fields, fields, anything, noise, truncated, nested, huge),
)


def head(dice: random.Random, token: str, size: int) -> str:
    method, path = dice.choice(TARGETS)
    shown = token if dice.random() < 0.95 else dice.choice(("", "x", "é"))
    host = "127.0.0.1" if dice.random() < 0.9 else "sandbox"
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {shown}"]
    accept = dice.choice(("application/x-msgpack", "application/json", "*/*", "", ";;;q=é"))
    kinds = ("text/plain", "multipart/form-data", "\xff")
    kind = "application/json" if dice.random() < 0.9 else dice.choice(kinds)
    lines += [f"Accept: {accept}", f"Content-Type: {kind}", f"Content-Length: {size}"]
    return "\r\n".join(lines) + "\r\n\r\n"


def request(dice: random.Random, token: str) -> bytes:
    """HTTP as it should be, around a body that is not."""
    body = dice.choice(BODIES)(dice)
    return head(dice, token, len(body)).encode("latin-1") + body


def nonsense(dice: random.Random, token: str) -> bytes:
    """No HTTP, or only for a while."""
    whole = request(dice, token)
    start, _, body = whole.partition(b"\r\n\r\n")
    flood = "".join(f"X-{n}: {'y' * 100}\r\n" for n in range(dice.choice((10, 500)))).encode()
    # "Connection: close" and its kind are not needed: the connection is closed from this side.
    return dice.choice(
        (
            whole[: dice.randrange(len(whole))],
            dice.randbytes(dice.randrange(1, 300)),
            whole.replace(b"Content-Length: ", b"Content-Length: 9"),
            whole.replace(b"Content-Length: ", b"Content-Length: -"),
            whole.replace(b"Content-Length: ", b"Content-Length: x"),
            start + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + body,
            start.replace(b"Content-Length", b"X") + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"ffffffffffffffffff\r\n" + body,
            start + b"\r\n" + flood + b"\r\n" + body,
            whole.replace(b"HTTP/1.1", b"HTTP/9.9"),
            whole.replace(b" /", b" http://[::1", 1),
            whole.replace(b" /", b" /%00%ff%2e%2e/", 1),
            start + b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + dice.randbytes(32),
            "".join(dice.choices(string.printable, k=100)).encode(),
        )
    )


class Fuzzer:
    """Sends requests from several connections and counts the answers."""

    def __init__(self, server: EmbeddedServer, seed: int) -> None:
        self._port = int(server.url.rsplit(":", 1)[1])
        self._token = server.token
        self._dice = random.Random(seed)
        self._left = REQUESTS
        self.statuses: Counter[int] = Counter()
        self.closed = 0

    async def run(self) -> None:
        await asyncio.gather(*(self._work() for _ in range(CONNECTIONS)))

    async def _work(self) -> None:
        while self._left > 0:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
            try:
                while self._left > 0:
                    self._left -= 1
                    proper = self._dice.random() < 0.8
                    make = request if proper else nonsense
                    writer.write(make(self._dice, self._token))
                    if not proper:
                        writer.write_eof()
                    async with asyncio.timeout(ANSWER_SECONDS):
                        if not await self._answer(reader) or not proper:
                            break
            except (OSError, asyncio.IncompleteReadError):
                self.closed += 1
            finally:
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bool:
        """Reads one answer; returns whether another can follow."""
        start = await reader.readline()
        if not start:
            self.closed += 1
            return False
        self.statuses[int(start.split()[1])] += 1
        size = 0
        closing = False
        while (line := await reader.readline()) not in (b"\r\n", b""):
            name, _, content = line.decode("latin-1").lower().partition(":")
            size = int(content) if name == "content-length" else size
            closing |= name == "connection" and "close" in content
        await reader.readexactly(size)
        return not closing


async def test_ten_thousand_random_requests_are_survived() -> None:
    with start_server(SETTINGS) as server:
        fuzzer = Fuzzer(server, seed=7)
        async with (
            SandboxClient(server.url, token=server.token) as client,
            await client.create_session() as session,
        ):
            await session.execute("kept = 6", 30)
            await fuzzer.run()
            assert server.alive
            result = await session.execute("kept * 7", 30)
            assert (result.outcome, result.result) == ("ok", "42")
    answered = sum(fuzzer.statuses.values())
    assert answered + fuzzer.closed >= REQUESTS and answered > 0.8 * REQUESTS
    assert set(fuzzer.statuses) <= EXPECTED, fuzzer.statuses
    # Every kind of refusal was met, and so was success.
    assert {200, 201, 204, 400, 401, 404, 405, 422} <= set(fuzzer.statuses), fuzzer.statuses


@pytest.mark.parametrize("start", [b"GET /health HTTP/1.1\r\nX: ", b"GET /"], ids=["header", "URL"])
async def test_an_endless_head_is_cut_off(server: EmbeddedServer, start: bytes) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(start)
    sent = 0
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while not reader.at_eof():
                writer.write(b"x" * (1 << 16))
                await writer.drain()
                sent += 1 << 16
                await asyncio.sleep(0)
    except ConnectionError:
        pass
    finally:
        writer.close()
    assert sent < 64 << 20
    async with SandboxClient(server.url, token=server.token) as client:
        assert (await client.health()).status == "ok"
