"""Every provider against a server that speaks its engine's API, as documented and broken."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from datetime import date
from typing import Any

import pytest

from deepeyes_plugins.search.contracts import (
    KeyMissingError,
    KeyRefusedError,
    QueryRefusedError,
    QuotaExhaustedError,
    SearchError,
    SearchNotConfiguredError,
    SearchQuery,
    SearchUnavailableError,
)
from deepeyes_plugins.search.hooks import search_providers
from deepeyes_plugins.search.providers.web import WebProvider
from deepeyes_plugins.testing.search import TEXT_CHECKS, Samples, check_text_provider
from tests.search.engines import (
    ENGINES,
    KEY,
    KEY_VARIABLE,
    PAGES,
    Asked,
    Engine,
    Fault,
    Script,
    endless,
    says,
)
from tests.serving import breaks_off

QUERY = SearchQuery(text="red panda", count=3)
Make = Callable[..., WebProvider[Any]]


@pytest.fixture
async def make(engine: Engine, url: str) -> AsyncIterator[Make]:
    made: list[WebProvider[Any]] = []

    def maker(**options: Any) -> WebProvider[Any]:
        made.append(engine.make(search_providers()[engine.name], url, **options))
        return made[-1]

    yield maker
    for provider in made:
        await provider.aclose()


async def test_it_keeps_the_contract(engine: Engine, make: Make) -> None:
    report = await check_text_provider(make, Samples(known="red panda", unknown="zzz"))
    assert report == dict.fromkeys(TEXT_CHECKS)


async def test_results_have_what_the_engine_says(engine: Engine, make: Make) -> None:
    results = (await make().search(QUERY)).results
    assert len(results) == 3
    for result, page in zip(results, PAGES, strict=False):
        assert result.title.removesuffix(" & co") == page["title"]
        assert result.snippet == page["snippet"]
        assert result.link == page["link"] or engine.name == "retriever"
        dated = ("serper", "serpapi", "brave", "tavily", "exa")
        assert result.date == (page["date"] if engine.name in dated else "")
        scored = ("tavily", "searxng", "retriever", "http")
        assert result.score == (page["score"] if engine.name in scored else None)


async def test_the_key_is_where_it_belongs_and_in_no_log(
    engine: Engine, make: Make, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    script.say(says("busy", 503))
    await make().search(QUERY)
    asked = script.requests[-1]
    if engine.key is not None:
        assert engine.key(asked) == KEY
    assert "busy" in caplog.text
    assert KEY not in caplog.text


WITH_KEY = [engine for engine in ENGINES if engine.key is not None]


@pytest.mark.parametrize("engine", WITH_KEY, ids=lambda engine: engine.name, indirect=True)
async def test_a_missing_key_is_named_and_nothing_is_sent(
    engine: Engine, make: Make, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    provider = make()
    for attempt in (provider.search(QUERY), provider.check()):
        with pytest.raises(KeyMissingError, match=f"{KEY_VARIABLE} is not set") as caught:
            await attempt
        assert caught.value.variable == KEY_VARIABLE
    assert not script.requests


FAULTS: dict[str, tuple[Fault, type[SearchError], str]] = {
    "401": (says({"message": "Unauthorized."}, 401), KeyRefusedError, "is refused"),
    "402": (says({"error": "payment required"}, 402), QuotaExhaustedError, "is used up"),
    "403 credits": (says({"error": "Not enough credits"}, 403), QuotaExhaustedError, "is used up"),
    "400 key": (
        says({"error": {"message": f"API key not valid: {KEY}"}}, 400),
        KeyRefusedError,
        "is refused",
    ),
    "404": (says("no such page", 404), SearchNotConfiguredError, r"\.url right\?"),
    "422": (says({"error": "query is too long"}, 422), QueryRefusedError, "query is too long"),
    "422 with the query": (
        says({"error": "too long: 'how to get daily credits without an API key'"}, 422),
        QueryRefusedError,
        "too long",
    ),
    "502 page": (says("<html>photo credit</html>", 502), SearchUnavailableError, "HTTP 502"),
    "429": (says("slow down", 429), QuotaExhaustedError, "too many requests"),
    "429 for good": (
        says({"error": "Your account has run out of searches."}, 429),
        QuotaExhaustedError,
        "is used up",
    ),
    "500": (says("broken", 500), SearchUnavailableError, "HTTP 500: broken"),
    "cut": (breaks_off, SearchUnavailableError, "payload is not completed"),
    "truncated": (says('{"organic": [{"ti'), SearchUnavailableError, "not JSON"),
    "html": (says("<html>Sign in</html>"), SearchUnavailableError, "not JSON.*Sign in"),
    "empty": (says(""), SearchUnavailableError, "not JSON"),
    "nested": (says("[" * 100_000), SearchUnavailableError, "not JSON"),
    "other json": (
        says({"hello": "world"}),
        SearchUnavailableError,
        "another format than documented",
    ),
    "a list": (says([]), SearchUnavailableError, "another format than documented"),
    "nothing": (says("null"), SearchUnavailableError, "another format than documented"),
    "50 MB": (endless, SearchUnavailableError, "larger than 8 MiB"),
    "redirect": (
        says("", 302, Location="/search"),
        SearchNotConfiguredError,
        "redirects are not followed",
    ),
}
KEYLESS = {"401": SearchNotConfiguredError, "400 key": QueryRefusedError}
REPEATED = {
    "429",
    "500",
    "502 page",
    "cut",
    "truncated",
    "html",
    "empty",
    "nested",
    "other json",
    "a list",
    "nothing",
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_told(engine: Engine, make: Make, script: Script, fault: str) -> None:
    response, kind, sentence = FAULTS[fault]
    script.say(response, stuck=True)
    if engine.key is None and fault in KEYLESS:
        kind, sentence = KEYLESS[fault], engine.name
    if engine.name == "searxng" and fault.startswith("403"):
        kind, sentence = SearchNotConfiguredError, "allow JSON"
    with pytest.raises(kind, match=sentence) as caught:
        await make().search(QUERY)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"{engine.name}: ")
    assert engine.key is None or KEY not in str(caught.value)
    if isinstance(caught.value, KeyRefusedError):
        assert KEY_VARIABLE in str(caught.value)
    assert len(script.requests) == (3 if fault in REPEATED else 1)


async def test_half_an_emoji_does_not_cost_the_answer(
    engine: Engine, make: Make, script: Script
) -> None:
    """Engines cut titles and snippets wherever they are too long."""
    engine_says = engine.answer(await asked_by(make, script))
    script.say(says(json.dumps(engine_says).replace("Red panda 1", "Red panda \\ud83d")))
    results = (await make().search(QUERY)).results
    assert [one.title.removesuffix(" & co") for one in results] == [
        "Red panda 0",
        "Red panda �",
        "Red panda 2",
    ]


async def asked_by(make: Make, script: Script) -> Asked:
    """The request that the provider makes."""
    await make().search(QUERY)
    return script.requests.pop()


@pytest.mark.parametrize("fault", sorted(REPEATED))
async def test_passing_trouble_is_tried_again(make: Make, script: Script, fault: str) -> None:
    script.say(FAULTS[fault][0])
    assert len((await make().search(QUERY)).results) == 3
    assert len(script.requests) == 2


async def test_it_waits_as_long_as_it_is_told_to(make: Make, script: Script) -> None:
    script.say(says("slow down", 429, Retry_After="0.25"))
    started = asyncio.get_running_loop().time()
    await make().search(QUERY)
    assert asyncio.get_running_loop().time() - started >= 0.25


async def test_an_engine_that_does_not_answer_is_given_up(make: Make, script: Script) -> None:
    script.holds = threading.Event()
    with pytest.raises(SearchUnavailableError, match=r"no complete response within 0\.1 s"):
        await make(timeout=0.1, retries=0).search(QUERY)
    script.holds.set()


async def test_an_empty_query_is_refused_here(make: Make, script: Script) -> None:
    with pytest.raises(QueryRefusedError, match="the query is empty"):
        await make().search(SearchQuery(text=" "))
    assert not script.requests


async def test_a_wrong_option_is_named_with_its_place(engine: Engine, make: Make) -> None:
    place = f"search.providers.{engine.name}"
    with pytest.raises(SearchNotConfiguredError, match=rf"{place}\.typo: unknown key"):
        make(typo=1)
    with pytest.raises(SearchNotConfiguredError, match=rf"{place}\.timeout: "):
        make(timeout=0)


async def test_the_check_reaches_the_server_without_a_search(make: Make, script: Script) -> None:
    assert "answers" in await make().check()
    assert not script.requests


FILTERED = SearchQuery(
    text="red panda",
    language="ja",
    region="DE",
    sites=("a.org", "b.org"),
    excluded_sites=("c.org",),
    since=date(2020, 2, 1),
    until=date(2021, 3, 4),
)
OPERATORS = "red panda (site:a.org OR site:b.org) -site:c.org"
SENT: dict[str, dict[str, Any]] = {
    "serper": {
        "q": OPERATORS,
        "num": 10,
        "gl": "de",
        "hl": "ja",
        "tbs": "cdr:1,cd_min:02/01/2020,cd_max:03/04/2021",
    },
    "serpapi": {
        "engine": "google",
        "q": OPERATORS,
        "num": "10",
        "gl": "de",
        "hl": "ja",
        "tbs": "cdr:1,cd_min:02/01/2020,cd_max:03/04/2021",
        "api_key": KEY,
    },
    "brave": {
        "q": OPERATORS,
        "count": "10",
        "country": "DE",
        "search_lang": "jp",
        "freshness": "2020-02-01to2021-03-04",
        "text_decorations": "false",
        "result_filter": "web",
    },
    "tavily": {
        "query": "red panda",
        "max_results": 10,
        "search_depth": "basic",
        "include_domains": ["a.org", "b.org"],
        "exclude_domains": ["c.org"],
        "start_date": "2020-02-01",
        "end_date": "2021-03-04",
    },
    "exa": {
        "query": "red panda",
        "type": "auto",
        "numResults": 10,
        "contents": {"highlights": True},
        "userLocation": "DE",
        "includeDomains": ["a.org", "b.org"],
        "excludeDomains": ["c.org"],
        "startPublishedDate": "2020-02-01T00:00:00.000Z",
        "endPublishedDate": "2021-03-04T23:59:59.999Z",
    },
    "google_cse": {
        "cx": "engine-1",
        "q": OPERATORS,
        "num": "10",
        "gl": "de",
        "lr": "lang_ja",
        "sort": "date:r:20200201:20210304",
    },
    "searxng": {"q": OPERATORS, "language": "ja-DE", "format": "json"},
    "retriever": {"queries": ["red panda"], "topk": 10, "return_scores": True},
    "http": {
        "text": "red panda",
        "options": {"limit": 10, "safe": True, "lang": "ja"},
        "only": ["a.org", "b.org"],
    },
}
FILTERS = {
    "serper": 6,
    "serpapi": 6,
    "brave": 6,
    "google_cse": 6,
    "tavily": 4,
    "exa": 5,
    "searxng": 4,
    "retriever": 0,
    "http": 2,
}


async def test_filters_are_sent_as_documented(engine: Engine, make: Make, script: Script) -> None:
    provider = make()
    dropped = {name: SearchQuery(text="x").model_dump()[name] for name in FILTERED.filters}
    unable = {name: dropped[name] for name in FILTERED.filters - provider.filters}
    await provider.search(FILTERED.model_copy(update=unable))
    [asked] = script.requests
    assert (asked.body or asked.params) == SENT[engine.name]
    assert len(provider.filters) == FILTERS[engine.name]
