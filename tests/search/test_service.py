"""The search service as agents meet it: a process in front of an engine."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from deepeyes_plugins.cli.main import app
from deepeyes_plugins.search.client import Search
from deepeyes_plugins.search.contracts import (
    KeyRefusedError,
    NotRecordedError,
    QueryRefusedError,
    QuotaExhaustedError,
    SearchNotConfiguredError,
    SearchQuery,
    SearchResults,
    SearchUnavailableError,
    TextSearchProvider,
)
from deepeyes_plugins.search.server import SearchServer
from deepeyes_plugins.search.settings import Kind, SearchSettings
from tests.search.engines import ENGINES, KEY, KEY_VARIABLE, Engines, Script, says
from tests.search.service import Service

TOKEN_VARIABLE = "DEEPEYES_TEST_SEARCH_TOKEN"


class Retriever(Script):
    """Search-R1's server, whose index has one passage for whatever is asked."""

    def __init__(self) -> None:
        super().__init__(next(engine for engine in ENGINES if engine.name == "retriever"))

    @property
    def queries(self) -> list[str]:
        return [query for asked in self.requests for query in asked.body["queries"]]


@pytest.fixture
def retriever(engines: tuple[Engines, str]) -> Iterator[tuple[Retriever, dict[str, Any]]]:
    script = engines[0].scripts["retriever"] = Retriever()
    options = {"url": f"{engines[1]}/retriever", "retry_wait": 0.01, "retries": 1}
    yield script, {"provider": "retriever", "providers": {"retriever": options}}
    if script.holds is not None:
        script.holds.set()


@pytest.fixture
def service(
    retriever: tuple[Retriever, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Service]:
    monkeypatch.setenv(TOKEN_VARIABLE, "token-1\n")  # As it comes out of a file.
    with Service(tmp_path, {**retriever[1], "token_env": TOKEN_VARIABLE}) as running:
        yield running


@pytest.fixture
async def client(service: Service) -> AsyncIterator[Search]:
    search = Search(SearchSettings(url=service.url, token_env=TOKEN_VARIABLE, timeout=20))
    yield search
    await search.aclose()


async def test_agents_search_through_it(
    client: Search, service: Service, retriever: tuple[Retriever, dict[str, Any]]
) -> None:
    script = retriever[0]
    found = await client.text.search(client.query("red panda", 2))
    assert [result.title for result in found.results] == ["Red panda 0", "Red panda 1"]
    assert not (await client.text.search(client.query("nothing of the kind"))).results
    with pytest.raises(QueryRefusedError, match="the query is empty"):
        await client.text.search(client.query("  "))
    script.say(says("broken", 500), stuck=True)
    with pytest.raises(SearchUnavailableError, match=r"retriever: .*HTTP 500: broken"):
        await client.text.search(client.query("another panda"))
    with pytest.raises(SearchNotConfiguredError, match="retriever has no filter for language"):
        await client.text.search(SearchQuery(text="x", language="de"))
    # What another client asked is known.
    asked = len(script.requests)
    script.say()
    await client.text.search(client.query(" red  panda", 2))
    assert len(script.requests) == asked
    assert json.loads(await client.text.check())["searches"]["text"]["counts"]["kept"] == 1


async def test_it_speaks_the_retriever_contract(service: Service) -> None:
    headers = {"Authorization": "Bearer token-1"}
    body = {"queries": ["red panda", "zzz"], "topk": 2, "return_scores": True}
    async with httpx.AsyncClient(base_url=service.url, headers=headers) as http:
        answer = (await http.post("/retrieve", json=body)).json()
        assert [len(hits) for hits in answer["result"]] == [2, 0]
        first = answer["result"][0][0]
        assert first["document"]["contents"] == '"Red panda 0"\nThe red panda, fact 0.'
        assert first["score"] == 1.0
        plain = (await http.post("/retrieve", json={**body, "return_scores": False})).json()
        assert plain["result"][0][0] == first["document"]
        refused = await http.post("/retrieve", json={"queries": "red panda"})
        assert refused.status_code == 422
        assert "queries" in refused.json()["message"]


async def test_its_metrics_tell_what_happened(client: Search, service: Service) -> None:
    for _ in range(3):
        await client.text.search(client.query("red panda"))
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{service.url}/metrics")).text
    assert 'deepeyes_search_queries_total{kind="text",outcome="asked"} 1.0' in text
    assert 'deepeyes_search_queries_total{kind="text",outcome="kept"} 2.0' in text
    answered = '{kind="text",outcome="answered",provider="retriever"} 1.0'
    assert f"deepeyes_search_calls_total{answered}" in text


async def test_bad_requests_are_refused(service: Service) -> None:
    headers = {"Authorization": "Bearer token-1"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers) as http:
        for path, body in (
            ("/search", b""),
            ("/search", b"{"),
            ("/search", b"[]"),
            ("/search", b'{"text": "x", "count": 0}'),
            ("/search", b'{"text": "x", "language": "english"}'),
            ("/search", b'{"text": "x", "extra": 1}'),
            ("/image_search", b'{"image": "no base64!"}'),
            ("/retrieve", b'{"queries": [1]}'),
        ):
            answer = await http.post(path, content=body)
            assert (answer.status_code, answer.json()["kind"]) == (422, "query_refused"), body
        image = {"image": base64.b64encode(b"x").decode()}
        answer = await http.post("/image_search", json=image)
        assert answer.status_code in (200, 422, 424)
        assert (await http.get("/nowhere")).status_code == 404
    async with httpx.AsyncClient(base_url=service.url) as http:
        assert (await http.post("/search", json={"text": "x"})).status_code == 401


class Faulty(TextSearchProvider):
    """A provider with a programming error."""

    name = "faulty"

    async def search(self, query: SearchQuery) -> SearchResults:
        return SearchResults.model_validate({"results": [{"rank": 1}]})


async def test_a_providers_own_fault_is_no_refusal_of_the_query() -> None:
    async with aclosing(Search(SearchSettings())) as search:
        search.text = Faulty()
        app = httpx.ASGITransport(SearchServer(search).app(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=app, base_url="http://service") as http:
            assert (await http.post("/search", json={"text": "x"})).status_code == 500
            assert (await http.post("/search", json={"text": 1})).status_code == 422


async def test_a_wrong_token_is_told(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPEYES_TEST_OTHER_TOKEN", "token-2")
    search = Search(SearchSettings(url=service.url, token_env="DEEPEYES_TEST_OTHER_TOKEN"))
    with pytest.raises(SearchNotConfiguredError, match="DEEPEYES_TEST_OTHER_TOKEN the service's"):
        await search.text.search(search.query("x"))
    await search.aclose()


async def test_a_thousand_equal_queries_make_one_call(
    client: Search, retriever: tuple[Retriever, dict[str, Any]]
) -> None:
    query = client.query("the same panda")
    answers = await asyncio.gather(*(client.text.search(query) for _ in range(1000)))
    assert retriever[0].queries == ["the same panda"]
    assert all(answer.results == answers[0].results for answer in answers)
    assert sum(not answer.kept for answer in answers) == 1
    assert len(answers[0].results) == 10


async def ask_all(url: str, clients: int, texts: list[str], right: list[str]) -> None:
    """Each client asks for all texts, each in an order of its own.

    Args:
        url: Of the service.
        clients: How many ask at the same time.
        texts: What they ask for.
        right: Gets what was answered rightly.
    """

    async def ask(number: int) -> None:
        search = Search(SearchSettings(url=url, token_env=TOKEN_VARIABLE))
        try:
            start = number * 7 % len(texts)
            for text in texts[start:] + texts[:start]:
                found = await search.text.search(search.query(text, 1))
                assert [one.title for one in found.results] == ["Red panda 0"], text
                right.append(text)
        except SearchUnavailableError:
            pass  # The service was killed.
        finally:
            await search.aclose()

    await asyncio.gather(*map(ask, range(clients)))


async def test_sixty_four_clients_get_right_answers_before_and_after_a_kill(
    retriever: tuple[Retriever, dict[str, Any]], tmp_path: Path
) -> None:
    script, settings = retriever
    texts = [f"panda {number}" for number in range(30)]
    before: list[str] = []
    with Service(tmp_path, settings) as service:
        asking = asyncio.create_task(ask_all(service.url, 64, texts, before))
        while len(set(before)) < 5:
            await asyncio.sleep(0.001)
        service.kill()
        await asking
    answered = set(before)
    assert len(answered) < len(texts) or len(before) < 64 * len(texts)
    script.requests.clear()
    with Service(tmp_path, settings) as service:
        after: list[str] = []
        await ask_all(service.url, 64, texts, after)
        assert len(after) == 64 * len(texts)
    # Nothing is asked twice, and nothing again that somebody got an answer to.
    assert len(script.queries) == len(set(script.queries))
    assert not answered & set(script.queries)
    assert not list(tmp_path.rglob("*.broken*"))


async def test_rate_and_budget_hold_for_all_clients_and_outlive_a_kill(
    retriever: tuple[Retriever, dict[str, Any]], tmp_path: Path
) -> None:
    script, settings = retriever
    settings["providers"]["retriever"] |= {"rate": 20}
    settings["budgets"] = {"retriever": {"per_day": 30}}

    async def ask(service: Service, word: str) -> list[str]:
        """What 64 clients are told who ask for something different each."""

        async def one(number: int) -> str:
            async with aclosing(Search(SearchSettings(url=service.url))) as search:
                try:
                    found = await search.text.search(search.query(f"{word} panda {number}", 1))
                except QuotaExhaustedError as error:
                    return str(error)
                return found.results[0].title

        return await asyncio.gather(*map(one, range(64)))

    used_up = "retriever: the budget of 30 searches is used up"
    with Service(tmp_path, settings) as service:
        started = time.monotonic()
        told = await ask(service, "red")
        # Twenty at once, then one each twentieth of a second.
        assert time.monotonic() - started >= 0.45
        assert len(script.queries) == told.count("Red panda 0") == 30
        assert all(answer.startswith(used_up) for answer in told if answer != "Red panda 0")
        service.kill()
    with Service(tmp_path, settings) as service:
        assert all(answer.startswith(used_up) for answer in await ask(service, "blue"))
        # What is known costs nothing.
        assert (await ask(service, "red")).count("Red panda 0") == 30
    assert len(script.queries) == 30


async def test_the_circuit_of_an_engine_that_keeps_failing_opens_and_the_next_one_answers(
    retriever: tuple[Retriever, dict[str, Any]], engines: tuple[Engines, str], tmp_path: Path
) -> None:
    script, settings = retriever
    script.say(says("broken", 500), stuck=True)
    http = next(one for one in ENGINES if one.name == "http")
    engines[0].scripts["http"] = Script(http)
    options = {**http.options, "url": f"{engines[1]}/http", "key_env": KEY_VARIABLE}
    settings["fallbacks"] = ["http"]
    settings["providers"]["http"] = options
    # The circuit opens in the middle of the first query, which has tries left.
    failing = {"circuit_failures": 2, "circuit_seconds": 60, "retries": 3}
    settings["providers"]["retriever"] |= failing
    # Options of the response cache come before agent.yaml.
    settings["cache"] = {"redis_url": "redis://127.0.0.1:1/0"}
    command = ("serve", "--cache", str(tmp_path / "kept.sqlite"))
    with Service(tmp_path, settings, *command, environment={KEY_VARIABLE: KEY}) as service:
        async with aclosing(Search(SearchSettings(url=service.url))) as search:
            started = time.monotonic()
            for number in range(20):
                found = await search.text.search(search.query(f"panda {number}", 1))
                assert found.results[0].title == "Red panda 0"
            assert time.monotonic() - started < 10, "a query waits for the open circuit"
            providers = json.loads(await search.text.check())["searches"]["text"]["providers"]
        async with httpx.AsyncClient() as client:
            metrics = (await client.get(f"{service.url}/metrics")).text
    assert len(script.requests) == 2
    assert "retriever: too many failures, circuit open" in providers["retriever"]
    assert providers["http"] == "ok"
    for line in (
        'calls_total{kind="text",outcome="unavailable",provider="retriever"} 1.0',
        'calls_total{kind="text",outcome="held_back",provider="retriever"} 19.0',
        'provider_available{kind="text",provider="retriever"} 0.0',
        'provider_available{kind="text",provider="http"} 1.0',
    ):
        assert f"deepeyes_search_{line}" in metrics
    assert sum(line.startswith("WARNING") for line in service.log) == 1
    assert (tmp_path / "kept.sqlite").exists()


async def test_a_recorded_run_is_repeated_exactly(
    retriever: tuple[Retriever, dict[str, Any]], tmp_path: Path
) -> None:
    script, settings = retriever
    file = tmp_path / "run.jsonl"
    texts = ["red panda", "a panda — 熊猫", "nothing"]

    async def answers(service: Service) -> list[str]:
        search = Search(SearchSettings(url=service.url))
        try:
            found = [await search.text.search(search.query(text, 3)) for text in texts]
            with pytest.raises(QueryRefusedError):
                await search.text.search(search.query(""))
            return [one.model_dump_json() for one in found]
        finally:
            await search.aclose()

    # Killed, with half a line at its end, and taken up again.
    with Service(tmp_path, settings, "record", str(file)) as service:
        recorded = await answers(service)
        service.kill()
    with file.open("ab") as cut:
        cut.write(b'{"kind": "text", "query": {"te')
    script.say(says({"result": [[]]}), stuck=True)
    with Service(tmp_path, {**settings, "cache": {"ttl": 0}}, "record", str(file)) as service:
        assert await answers(service) == recorded
        assert any("truncated" in line for line in service.log)
    assert len(file.read_text().splitlines()) == 4

    script.requests.clear()
    with Service(tmp_path, {}, "replay", str(file)) as service:
        assert await answers(service) == recorded
        search = Search(SearchSettings(url=service.url))
        with pytest.raises(NotRecordedError, match=r"no response to .*blue whale"):
            await search.text.search(search.query("blue whale"))
        with pytest.raises(NotRecordedError, match="red panda"):
            await search.text.search(search.query("red panda", 4))  # Another count.
        health = json.loads(await search.text.check())
        assert health["searches"]["text"]["counts"]["not_recorded"] == 2
        await search.aclose()
    assert not script.requests


async def test_a_refused_key_reaches_the_agents(
    engines: tuple[Engines, str], tmp_path: Path
) -> None:
    engines[0].scripts["serper"] = Script(next(one for one in ENGINES if one.name == "serper"))
    serper = {"url": f"{engines[1]}/serper", "key_env": KEY_VARIABLE}
    settings = {"provider": "serper", "providers": {"serper": serper}}
    with Service(tmp_path, settings, environment={KEY_VARIABLE: "wrong"}) as service:
        search = Search(SearchSettings(url=service.url))
        with pytest.raises(KeyRefusedError, match=KEY_VARIABLE) as caught:
            await search.text.search(search.query("x"))
        assert caught.value.variable == KEY_VARIABLE
        await search.aclose()


def test_answers_are_kept_in_one_place() -> None:
    places = ("--cache", "file", "--redis", "redis://host")
    answer = CliRunner().invoke(app, ["search", "serve", *places])
    assert (answer.exit_code, "--cache or --redis" in answer.stderr) == (2, True), answer.stderr


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deepeyes_plugins.cli", "search", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def test_beyond_loopback_it_wants_a_token(tmp_path: Path) -> None:
    answer = run("serve", "--host", "0.0.0.0", "--port", "0", "--provider", "serper")
    assert answer.returncode == 1
    assert "DEEPEYES_TOKEN_SEARCH" in answer.stderr


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"provider": "exa", "providers": {"exa": {"key_env": KEY_VARIABLE}}}, KEY_VARIABLE),
        ({"image_provider": "serpapi_lens"}, "SERPAPI_API_KEY is not set"),
        ({}, "deepeyes search index build"),
    ],
)
def test_what_a_provider_lacks_ends_the_service_at_its_start(
    search: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (KEY_VARIABLE, "SERPAPI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    config = tmp_path / "agent.yaml"
    config.write_text(json.dumps({"search": search}))
    answer = run("serve", "--port", "0", "--config", str(config))
    assert answer.returncode == 1
    assert told in answer.stderr
    assert "Traceback" not in answer.stderr


def test_an_unknown_provider_is_refused_with_the_known_ones() -> None:
    answer = run("serve", "--port", "0", "--provider", "serpr")
    assert answer.returncode == 1
    assert "Did you mean 'serper'?" in answer.stderr


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("text", {"providers": {"serpr": {}}}, r"search\.providers: .* mean 'serper'\?"),
        ("image", {"image_providers": {"cach": {}}}, r"search\.image_providers: .* 'cache'\?"),
        ("text", {"budgets": {"serpr": {"per_day": 5}}}, r"search\.budgets: .* mean 'serper'\?"),
    ],
)
def test_options_and_budgets_of_nobody_are_refused(
    kind: Kind, settings: dict[str, Any], told: str
) -> None:
    search = Search(SearchSettings.model_validate(settings))
    with pytest.raises(SearchNotConfiguredError, match=told):
        search.preflight(kind)


def test_a_provider_is_tried_from_the_command_line(
    engines: tuple[Engines, str], tmp_path: Path
) -> None:
    engines[0].scripts["serper"] = Script(next(one for one in ENGINES if one.name == "serper"))
    config = tmp_path / "agent.yaml"
    options = {"url": f"{engines[1]}/serper", "key_env": KEY_VARIABLE}
    config.write_text(json.dumps({"search": {"providers": {"serper": options}}}))
    query = ("query", "red panda", "--provider", "serper", "--config", str(config))
    shown = run(*query, "--count", "2", **{KEY_VARIABLE: KEY})
    assert shown.returncode == 0, shown.stderr
    assert "1. Red panda 0" in shown.stdout and "https://example.org/1" in shown.stdout
    found = json.loads(run(*query, "--json", **{KEY_VARIABLE: KEY}).stdout)
    assert len(found["results"]) == 10
    refused = run(*query, **{KEY_VARIABLE: "wrong"})
    assert refused.returncode == 1
    assert f"the key in ${KEY_VARIABLE} is refused" in " ".join(refused.stderr.split())
