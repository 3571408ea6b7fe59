"""No key leaves: every client, on every failure that a server can produce, in every spelling.

One canary is the key of every client. Afterwards it must not be found in errors with their causes,
logs at debug level, results, files, answers of our servers, output of ``doctor`` and arguments of
processes. A new client fails :func:`test_every_client_is_in_the_table` until it is listed.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import contextlib
import io
import json
import logging
import re
import socket
import socketserver
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from deepeyes_plugins.cli.main import app as command
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.hosts.openai import ChatClient, OpenAISettings, load_openai_settings
from deepeyes_plugins.hosts.openai.probe import probe
from deepeyes_plugins.judge.contracts import Comparison
from deepeyes_plugins.judge.judge import LLMJudge
from deepeyes_plugins.judge.preflight import examine
from deepeyes_plugins.judge.settings import JudgeEndpoint, JudgeSettings
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.remote import redaction
from deepeyes_plugins.remote.chat import text_message
from deepeyes_plugins.rollout import Task, rollout
from deepeyes_plugins.rollout.scripted import ScriptedPolicy
from deepeyes_plugins.sandbox.client import SandboxClient
from deepeyes_plugins.sandbox.contracts import SandboxError
from deepeyes_plugins.sandbox.embedded import start_server
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.search.cache import make_store
from deepeyes_plugins.search.client import Search
from deepeyes_plugins.search.contracts import ImageQuery, SearchError, SearchQuery
from deepeyes_plugins.search.hooks import image_search_providers, search_providers
from deepeyes_plugins.search.recording import Recording
from deepeyes_plugins.search.server import SearchServer
from deepeyes_plugins.search.settings import CacheSettings, SearchSettings
from deepeyes_plugins.settings import AgentSettings, load_settings
from deepeyes_plugins.tools.resources import Resources
from tests.pictures import chart

ROOT = Path(__file__).parents[1]
PICTURE = EncodedImage.from_pil(chart())
KEY = "KaN4r1enV0gel7+/=&%~\"'<x> \\9Zq"
VARIABLE = "DEEPEYES_TEST_CANARY"
_PART = KEY[:8]
"""What no text may contain: texts that were cut before they were redacted would."""


def leaks(text: str) -> list[str]:
    """The canary's beginning in any spelling, found without the code that is tested."""
    plain = text
    for _ in range(3):
        plain = re.sub(r"%([0-9a-fA-F]{2})", lambda m: chr(int(m[1], 16)), plain)
        plain = re.sub(r"\\+[ux](?:00)?([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), plain)
    cores = [base64.b64encode(bytes(n) + _PART.encode())[n and n + 1 : -4] for n in range(3)]
    spelled = [_PART, _PART.encode().hex(), *(core.decode() for core in cores)]
    return [one for one in spelled if one.lower() in plain.lower() or one.lower() in text.lower()]


def spellings(text: str) -> dict[str, str]:
    basic = base64.b64encode(f"user:{text}".encode()).decode()
    return {
        "literal": text,
        "percent": quote(text),
        "percent, all": quote(text, safe=""),
        "percent, lower case": re.sub("%..", lambda m: m[0].lower(), quote(text, safe="")),
        "percent, twice": quote(quote(text, safe=""), safe=""),
        "form": quote(text, safe="").replace("%20", "+"),
        "JSON": json.dumps(text),
        "JSON in JSON": json.dumps(json.dumps({"key": text})),
        "escapes": "".join(f"\\u{ord(one):04x}" for one in text),
        "bytes": repr(text.encode()),
        "hexadecimal": text.encode().hex(),
        "Basic": basic,
        "Basic without padding": basic.rstrip("="),
        "base64 of a header": base64.b64encode(f"Bearer {text}\r\n".encode()).decode(),
        "base64 in a URL": quote(basic, safe=""),
        "base64, URL-safe": base64.urlsafe_b64encode(text.encode()).decode(),
    }


@pytest.mark.parametrize("spelling", spellings(KEY))
def test_a_spelling_is_redacted_in_texts_and_in_data(spelling: str) -> None:
    redaction.protect(KEY)
    text = f"before {spellings(KEY)[spelling]} after"
    assert leaks(text), "the search must find what was not redacted"
    body = redaction.redact_body(text.encode()).decode()
    assert not leaks(redaction.redact(text)) and not leaks(body)
    assert redaction.redact(text).startswith("before ") and body.endswith(" after")
    assert len(body) == len(text)


@settings(deadline=None, max_examples=30)
@given(
    st.text(
        st.characters(exclude_categories=["Cs"], max_codepoint=0xFFFF), min_size=8, max_size=40
    ),
    st.data(),
)
def test_any_secret_is_found_in_any_spelling(secret: str, data: st.DataObject) -> None:
    spelled = data.draw(st.sampled_from(sorted(spellings(secret).values())))
    with patch.dict(redaction._secrets, clear=True):
        redaction.protect(secret)
        assert redaction.redact(f"{spelled}") != spelled


def test_a_short_secret_is_removed_from_messages_as_a_word_and_stays_out_of_data() -> None:
    with patch.dict(redaction._secrets):
        redaction.protect("EMPTY")
        assert redaction.redact("Bearer EMPTY, NONEMPTY") == "Bearer [redacted], NONEMPTY"
        assert redaction.redact_body(b'{"title": "EMPTY"}') == b'{"title": "EMPTY"}'


# --- A server that fails in every way, and repeats what it was sent ----------------------------


def _response(status: str, body: str, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body.encode())}", "Connection: close"]
    return "\r\n".join([*head, *headers, "", body]).encode("utf-8", "replace")


def _json(echo: str) -> str:
    return json.dumps({"error": {"message": echo}, "results": [{"title": echo, "link": echo}]})


FAILURES: dict[str, Callable[[str, str], bytes | None]] = {
    "a malformed status line": lambda echo, _: f"NOT-HTTP {echo}\r\n\r\n".encode(),
    "a malformed header": lambda echo, _: f"HTTP/1.1 200 OK\r\nbad {echo}\r\n\r\n".encode(),
    "a header too long": lambda echo, _: _response("200 OK", "{}", f"X-Echo: {echo * 100}"),
    "a body cut off": lambda echo, _: _response("200 OK", _json(echo))[:-20],
    "a chunk that is none": lambda echo, _: (
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{echo}\r\n".encode()
    ),
    "invalid JSON": lambda echo, _: _response("200 OK", f"<html>{echo}"),
    "JSON of another kind": lambda echo, _: _response("200 OK", _json(echo)),
    "a refusal": lambda echo, _: _response("400 Bad Request", _json(echo)),
    "a long refusal": lambda echo, _: _response("422 No", "x" * 290 + echo),
    "an unknown key": lambda echo, _: _response("401 No", _json(echo), f"X-Echo: {echo}"),
    "an account used up": lambda echo, _: _response("429 No", f"daily quota {echo}"),
    "an error": lambda echo, _: _response("500 Oh", f"trace: {echo}"),
    "a redirect": lambda echo, other: _response(
        "302 Found", echo, f"Location: {other}/?{quote(echo)}"
    ),
    "silence": lambda echo, _: None,
}


class FailingServer(socketserver.ThreadingTCPServer):
    """Answers every request with one failure, in which it repeats the request."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, failure: str, elsewhere: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.failure, self.elsewhere = failure, elsewhere
        self.seen: list[str] = []
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """Clients hang up; TLS handshakes are no HTTP."""


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server: Any = self.server
        head = b""
        while (line := self.rfile.readline(65536)).strip():
            head += line
            if line[:1] in b"*\x16":  # Redis, TLS.
                head += self.request.recv(65536)
                break
        text = head.decode("latin-1")
        server.seen.append(text)
        length = re.search(r"content-length: (\d+)", text, re.IGNORECASE)
        self.rfile.read(int(length[1]) if length else 0)
        echo = " ".join([*text.split("\r\n"), *spellings(KEY).values()])
        if head[:1] == b"*":
            self.wfile.write(f"-ERR {echo}\r\n".encode())
            return
        answer = FAILURES[server.failure](echo, server.elsewhere)
        if answer is None:
            server.closing.wait(5)
        else:
            self.wfile.write(answer)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[FailingServer]:
    """The target of redirects, which must not be asked."""
    with FailingServer("an error") as server:
        yield server


@pytest.fixture(scope="module")
def places(elsewhere: FailingServer) -> Iterator[dict[str, str]]:
    """The URL of each failure."""
    with contextlib.ExitStack() as stack:
        found = {
            failure: stack.enter_context(FailingServer(failure, elsewhere.url)).url
            for failure in FAILURES
        }
        unused = stack.enter_context(socket.socket())
        unused.bind(("127.0.0.1", 0))  # Not listening.
        found["no server"] = f"http://127.0.0.1:{unused.getsockname()[1]}"
        found["no TLS"] = found["an error"].replace("http", "https")
        yield found


# --- The clients --------------------------------------------------------------------------------

Ask = Callable[[str], Awaitable[object]]
_QUICK = {"retries": 1, "retry_wait": 0.01, "retry_wait_maximum": 0.01, "timeout": 0.5}
_OPTIONS: dict[str, dict[str, Any]] = {
    "google_cse": {"engine_id": "1"},
    "http": {"headers": {"X-Secret": KEY}, "body": {"auth": {"token": KEY}}, "method": "POST"},
}


def _provider(registry: Callable[[], Any], name: str) -> Ask:
    async def ask(url: str) -> object:
        section = _OPTIONS.get(name, {})
        if registry is image_search_providers:
            section = {key: value for key, value in section.items() if key != "method"}
        provider = registry()[name]({"url": url, "key_env": VARIABLE, **_QUICK, **section})
        image = ImageQuery(PICTURE)
        try:
            await asyncio.gather(provider.check(), return_exceptions=True)
            return await provider.search(
                SearchQuery(text="panda") if registry is search_providers else image
            )
        finally:
            await provider.aclose()

    return ask


async def _service(url: str) -> object:
    search = Search(SearchSettings(url=url, token_env=VARIABLE, timeout=0.5))
    asked = (
        search.text.check(),
        search.text.search(SearchQuery(text="panda")),
        search.images.search(ImageQuery(PICTURE)),
    )
    try:
        found = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        await search.aclose()
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


async def _judge(url: str) -> object:
    endpoint = JudgeEndpoint(url=url, model="m", api_key_env=VARIABLE)
    settings = JudgeSettings(endpoints=(endpoint,), outage="mark", **_QUICK)
    reports = await examine(settings)
    async with LLMJudge(settings) as judge:
        verdict = await judge.compare("answer", Comparison("?", "red", "red"))
    return reports, verdict


async def _openai(url: str) -> object:
    settings = OpenAISettings(url=url, model="m", api_key_env=VARIABLE, **_QUICK)
    async with ChatClient(settings) as client:
        await asyncio.gather(client.check(), return_exceptions=True)
        return await client.complete(client.next_server(), [text_message("user", "?")], {})


async def _sandbox(url: str) -> object:
    async with SandboxClient(url, token=KEY, timeout=0.5) as client:
        failures = await asyncio.gather(client.health(), return_exceptions=True)
        return failures, await client.create_session([PICTURE.data])


async def _probe(url: str) -> object:
    settings = OpenAISettings(url=url, model="m", profile="vllm", api_key_env=VARIABLE, **_QUICK)
    return await probe(settings)


async def _redis(url: str) -> object:
    address = url.rpartition("//")[2]
    settings = CacheSettings(redis_url=f"redis://{address}/0", redis_password_env=VARIABLE)
    store = make_store(settings)
    await store.put("key", b"value", 60)
    try:
        return await store.get("key")
    finally:
        await store.aclose()


CLIENTS: dict[str, Ask] = {
    **{
        f"text:{name}": _provider(search_providers, name)
        for name in (
            *("brave", "exa", "google_cse", "http", "retriever"),
            *("searxng", "serpapi", "serper", "tavily"),
        )
    },
    **{
        f"image:{name}": _provider(image_search_providers, name)
        for name in ("http", "serpapi_lens")
    },
    "search service": _service,
    "judge": _judge,
    "model server": _openai,
    "probe of a model server": _probe,
    "sandbox": _sandbox,
    "Redis of the response cache": _redis,
}
WITHOUT_A_SERVER = {"text:local", "text:replay", "image:cache", "image:replay"}

MODULES = {
    "deepeyes_plugins/hosts/openai/client.py": "model server",
    "deepeyes_plugins/hosts/openai/probe.py": "probe of a model server",
    "deepeyes_plugins/judge/judge.py": "judge",
    "deepeyes_plugins/remote/http.py": "opens the connections of all but Redis",
    "deepeyes_plugins/quickstart/process.py": "asks its own model server, which has no key",
    "deepeyes_plugins/remote/chat.py": "the base of judge and model server",
    "deepeyes_plugins/remote/service.py": "the base of all but the sandbox and Redis",
    "deepeyes_plugins/sandbox/client.py": "sandbox",
    "deepeyes_plugins/sandbox/snapshots.py": "Redis of the sandbox: its errors are raised nowhere",
    "deepeyes_plugins/search/cache.py": "Redis of the response cache",
    "deepeyes_plugins/search/client.py": "search service",
    "deepeyes_plugins/search/fetching.py": "pages and thumbnails: fetched without any key",
    "deepeyes_plugins/search/providers/web.py": "text and image providers",
}
"""Modules that send requests, each with the client of the table that covers it."""
SENDERS = re.compile(
    r"RemoteService|open_session|ChatEndpoint|(httpx|httpcore)\.Async(?!Byte|Net|Base)\w+|aiohttp\.ClientSession"
    r"|Redis\.from_url|requests\.(get|post|Session)|(urllib\.request\.)?urlopen|HTTPS?Connection"
)


def senders() -> Iterator[str]:
    """Modules that create a client of a server."""
    for top in ("deepeyes_plugins", "eval_plugins"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and SENDERS.fullmatch(ast.unparse(node.func)):
                    yield str(path.relative_to(ROOT))


def test_a_log_record_whose_arguments_do_not_fit_is_logged_without_the_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    redaction.protect("of-the-canary")
    logging.getLogger("a library").warning("%d of them", "of-the-canary")
    assert caplog.messages == ["'%d of them' with ('[redacted]',)"]


def test_every_client_is_in_the_table() -> None:
    assert set(senders()) <= set(MODULES), "list the module, and its client in CLIENTS"
    named = {f"text:{name}" for name in search_providers()}
    named |= {f"image:{name}" for name in image_search_providers()}
    builtin = {name for name in CLIENTS if ":" in name} | WITHOUT_A_SERVER
    assert {name for name in named if "deepeyes" in str(name)} <= builtin
    assert builtin <= named


@contextlib.contextmanager
def everything_logged() -> Iterator[io.StringIO]:
    """All records of all libraries, with their tracebacks."""
    log, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(log), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield log
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@pytest.mark.parametrize("client", CLIENTS)
async def test_no_failure_of_a_server_reveals_the_key(
    client: str,
    places: dict[str, str],
    elsewhere: FailingServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)

    async def outcome(failure: str) -> tuple[str, str]:
        try:
            return failure, repr(await CLIENTS[client](places[failure]))
        except Exception as error:
            logging.getLogger("a host").exception("it failed")
            return failure, "".join(traceback.format_exception(error)) + repr(error)

    with everything_logged() as log:
        outcomes = dict(await asyncio.gather(*map(outcome, places)))
    assert {failure: leaks(text) for failure, text in outcomes.items() if leaks(text)} == {}
    assert [line for line in log.getvalue().splitlines() if leaks(line)] == []
    assert elsewhere.seen == [], "a redirect to another host was followed"


async def test_what_is_stored_and_served_has_no_key(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    options = {"url": places["JSON of another kind"], "key_env": VARIABLE, **_QUICK}
    failing = {**options, "url": places["an error"]}
    for name, chosen in (("works", options), ("fails", failing)):
        settings = SearchSettings(
            provider="http",
            providers={"http": chosen},
            cache=CacheSettings(path=tmp_path / f"{name}.sqlite"),
        )
        recording = Recording(tmp_path / f"{name}.jsonl", writable=True)
        server = SearchServer(Search(settings), recording).app()
        transport = httpx.ASGITransport(server)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answers = [
                await client.post("/search", json={"text": "panda"}),
                await client.get("/health"),
                await client.get("/metrics"),
            ]
        assert answers[0].status_code == (200 if name == "works" else 424)
        assert not leaks("".join(f"{one.headers} {one.text}" for one in answers))

        resources = Resources(AgentSettings(search=settings, trajectories=tmp_path / name))
        call = '<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
        policy = ScriptedPolicy([call, "<answer>red</answer>"])
        task = Task("1", (Message("user", ("What?",)),))
        trajectory = await rollout(policy, environments()["deepeyes_v2"](resources), task)
        await resources.aclose()
        (tmp_path / f"{name}.trajectory").write_text(trajectory.model_dump_json())
    stored = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"works.jsonl", "works.sqlite", "works.trajectory"} <= set(stored)
    leaking = [name for name, data in stored.items() if leaks(data.decode("latin-1"))]
    assert leaking == []


@pytest.mark.parametrize("failure", ["an unknown key", "a refusal", "a malformed status line"])
def test_doctor_prints_no_key(
    failure: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("DEEPEYES_TOKEN_SANDBOX", KEY)
    url, file = places[failure], tmp_path / "agent.yaml"
    provider = {"url": url, "key_env": VARIABLE, **_QUICK}
    settings = {
        "sandbox": {"url": url},
        "search": {
            "provider": "serpapi",
            "providers": {"serpapi": provider},
            "image_provider": "serpapi_lens",
            "image_providers": {"serpapi_lens": provider},
        },
        "judge": {"endpoints": [{"url": url, "api_key_env": VARIABLE}], **_QUICK},
    }
    file.write_text(json.dumps(settings))
    monkeypatch.setenv("DEEPEYES_AGENT_CONFIG", str(file))
    for shape in ([], ["--json"]):
        printed = (
            CliRunner().invoke(command, ["doctor", "--only", "judge,search,sandbox", *shape]).output
        )
        assert "problem" in printed and not leaks(printed)


def test_no_process_has_a_secret_among_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPEYES_TOKEN_SANDBOX", KEY)
    monkeypatch.setenv("DEEPEYES_REDIS_PASSWORD", KEY)
    with start_server(SandboxSettings(redis_url="redis://127.0.0.1:1/0")) as server:
        arguments = Path(f"/proc/{server.pid}/cmdline").read_text()
    assert "redis://127.0.0.1:1/0" in arguments and not leaks(arguments)


# --- URLs with credentials ----------------------------------------------------------------------

_PASSWORD = quote(KEY, safe="")
URLS = {
    "DEEPEYES_SANDBOX_URL": ("http://user:{}@host:8080", "sandbox.token_env"),
    "DEEPEYES_SANDBOX_REDIS_URL": ("redis://:{}@host:6379/0", "sandbox.redis_password_env"),
    "DEEPEYES_SEARCH_URL": ("https://{}@host", "search.token_env"),
    "DEEPEYES_SEARCH_CACHE": (
        '{{"redis_url": "redis://host?password={}"}}',
        "search.cache.redis_password_env",
    ),
    "DEEPEYES_JUDGE_ENDPOINTS": ('[{{"url": "http://user:a/b{}@host"}}]', "api_key_env"),
}


@pytest.mark.parametrize("variable", URLS)
def test_a_url_with_credentials_is_refused_without_repeating_them(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, instead = URLS[variable]
    monkeypatch.setenv(variable, url.format(_PASSWORD))
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert instead in str(refused.value) and "host" in str(refused.value)
    assert not leaks("".join(traceback.format_exception(refused.value)))


def _judge_of_the_environment(url: str) -> object:
    with patch.dict("os.environ", {"LLM_AS_A_JUDGE_BASE": url}):
        return JudgeSettings().servers()


PLACES: dict[str, Callable[[str], object]] = {
    "the authors' variable of the judge": _judge_of_the_environment,
    "a model server": lambda url: load_openai_settings(url=url),
    "a search engine": lambda url: search_providers()["searxng"]({"url": url}),
    "an image engine": lambda url: image_search_providers()["http"]({"url": url}),
    "a sandbox client": SandboxClient,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("url", ["http://user:{}@host", "http://{}@host", "http://host?api_key={}"])
def test_every_place_for_a_url_refuses_credentials(place: str, url: str) -> None:
    with pytest.raises((ValueError, SearchError, SandboxError), match="environment variable") as no:
        PLACES[place](url.format(_PASSWORD))
    assert not leaks("".join(traceback.format_exception(no.value)))


def test_a_redis_user_without_a_password_is_no_secret() -> None:
    assert SandboxSettings(redis_url="redis://user@host").redis_url == "redis://user@host"


@pytest.mark.parametrize(
    "words", [["sandbox", "serve"], ["sandbox", "up", "--ray"], ["search", "serve"]], ids=" ".join
)
def test_a_redis_password_on_the_command_line_is_refused(words: list[str]) -> None:
    answer = CliRunner().invoke(command, [*words, "--redis", f"redis://:{_PASSWORD}@host"])
    assert answer.exit_code == 2 and "DEEPEYES_REDIS_PASSWORD" in answer.output
    assert not leaks(answer.output)
