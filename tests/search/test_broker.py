"""Kept answers, one request for equal queries, budgets and fallbacks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.search.broker import Broker, SearchType, Source, identity
from deepeyes_plugins.search.cache import RedisStore, ResponseStore, SqliteStore
from deepeyes_plugins.search.client import IMAGES, TEXT
from deepeyes_plugins.search.contracts import (
    FILTERS,
    ImageQuery,
    ImageResult,
    ImageResults,
    ImageSearchProvider,
    KeyMissingError,
    QueryRefusedError,
    QuotaExhaustedError,
    SearchError,
    SearchQuery,
    SearchResult,
    SearchResults,
    SearchUnavailableError,
    TextSearchProvider,
)
from deepeyes_plugins.search.settings import Budget, CacheSettings
from tests.redis_server import RedisServer

Says = Callable[[SearchQuery], SearchResults]


def echo(query: SearchQuery) -> SearchResults:
    return SearchResults(results=(SearchResult(title=query.text, link="https://example.org"),))


class Fake(TextSearchProvider):
    """Says what it is told to and remembers what it was asked."""

    filters = FILTERS
    pause = 0.0

    def __init__(self, name: str = "fake", says: Says | SearchError = echo) -> None:
        self.name = name
        self.says = says
        self.asked: list[str] = []
        self.release = asyncio.Event()
        self.release.set()

    async def search(self, query: SearchQuery) -> SearchResults:
        self.asked.append(query.text)
        await self.release.wait()
        if isinstance(self.says, SearchError):
            raise self.says
        return self.says(query)


@pytest.fixture
async def store() -> AsyncIterator[ResponseStore]:
    made = SqliteStore(None, 1 << 20)
    yield made
    await made.aclose()


def broker(
    store: ResponseStore, *providers: Fake, budget: Budget | None = None, **cache: Any
) -> Broker[SearchQuery, SearchResults]:
    sources = [Source(one, one.name, budget or Budget()) for one in providers]
    run = cache.pop("run", "")
    return Broker(TEXT, sources, store, CacheSettings(**cache), run)


QUERY = SearchQuery(text="red panda")


def kept(answer: SearchResults) -> SearchResults:
    """The answer as it comes where it cost no search."""
    return answer.model_copy(update={"kept": True})


async def test_a_thousand_equal_queries_ask_once(store: ResponseStore) -> None:
    fake = Fake()
    fake.release.clear()
    asking = broker(store, fake)
    waiting = [asyncio.create_task(asking.search(QUERY)) for _ in range(1000)]
    while not fake.asked:
        await asyncio.sleep(0)
    waiting[0].cancel()  # Whoever asked first is no more important than the others.
    fake.release.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert fake.asked == ["red panda"]
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [kept(echo(QUERY))] * 999
    assert asking.counts["shared"] == 999


async def test_an_answer_is_kept_and_a_different_query_is_asked(store: ResponseStore) -> None:
    fake = Fake()
    assert await broker(store, fake).search(QUERY) == echo(QUERY)
    for _ in range(2):
        assert await broker(store, fake).search(QUERY) == kept(echo(QUERY))
    others = [
        QUERY.model_copy(update=change)
        for change in ({"count": 3}, {"language": "de"}, {"sites": ("a.org",)}, {"text": "x"})
    ]
    for other in others:
        await broker(store, fake).search(other)
    assert len(fake.asked) == 1 + len(others)


def test_an_answer_does_not_depend_on_how_patiently_it_is_asked_for() -> None:
    options = {"url": "https://example.org", "key_env": "ONE", "rate": 50, "retries": 9}
    patient = {"url": "https://example.org", "key_env": "OTHER", "rate": 5, "timeout": 90}
    assert identity("serper", options) == identity("serper", patient)
    assert identity("serper", options) != identity("serper", options | {"url": "https://other"})
    assert identity("serper", options) != identity("brave", options)


async def test_an_empty_answer_is_kept_for_a_shorter_time(store: ResponseStore) -> None:
    fake = Fake(says=lambda query: SearchResults())
    for _ in range(2):
        await broker(store, fake, negative_ttl=0).search(QUERY)
    assert len(fake.asked) == 2
    for _ in range(3):
        await broker(store, fake, negative_ttl=60).search(QUERY)
    assert len(fake.asked) == 3


async def test_a_refusal_is_kept_and_a_failure_is_not(store: ResponseStore) -> None:
    fake = Fake(says=QueryRefusedError("too long"))
    for _ in range(2):
        with pytest.raises(QueryRefusedError, match="too long"):
            await broker(store, fake).search(QUERY)
    assert len(fake.asked) == 1
    broken = Fake("broken", SearchUnavailableError("down"))
    for _ in range(2):
        with pytest.raises(SearchUnavailableError, match="down"):
            await broker(store, broken).search(QUERY)
    assert len(broken.asked) == 2


async def test_a_cached_response_of_another_version_is_requested_again(
    store: ResponseStore,
) -> None:
    fake = Fake()
    newer = SearchType(**{**vars(TEXT), "dump": lambda answer: b'{"results": [{"rank": 1}]}'})
    await Broker(newer, [Source(fake, fake.name)], store, CacheSettings()).search(QUERY)
    assert await broker(store, fake).search(QUERY) == echo(QUERY)
    assert await broker(store, fake).search(QUERY) == kept(echo(QUERY))
    assert len(fake.asked) == 2


async def test_a_partial_answer_is_not_kept(store: ResponseStore) -> None:
    fake = Fake(says=lambda query: echo(query).model_copy(update={"partial": "half of it"}))
    for _ in range(2):
        assert (await broker(store, fake).search(QUERY)).partial == "half of it"
    assert len(fake.asked) == 2


async def test_the_next_provider_answers_for_one_that_does_not(store: ResponseStore) -> None:
    first, second = Fake("first", SearchUnavailableError("down")), Fake("second")
    asking = broker(store, first, second)
    assert await asking.search(QUERY) == echo(QUERY)
    # The answer is the second one's: as soon as the first is back, it is asked.
    first.says = lambda query: SearchResults(results=(SearchResult(title="first"),))
    assert (await asking.search(QUERY)).results[0].title == "first"


async def test_what_each_provider_said_is_told(store: ResponseStore) -> None:
    first = Fake("first", KeyMissingError("first: FIRST_KEY is not set", variable="FIRST_KEY"))
    second = Fake("second", SearchUnavailableError("second: down"))
    with pytest.raises(SearchUnavailableError, match="FIRST_KEY is not set; second: down"):
        await broker(store, first, second).search(QUERY)


async def test_a_provider_without_quota_gets_no_request(store: ResponseStore) -> None:
    fake = Fake(says=QuotaExhaustedError("used up", retry_after=60))
    asking = broker(store, fake)
    for number in range(3):
        with pytest.raises(QuotaExhaustedError, match="used up"):
            await asking.search(SearchQuery(text=str(number)))
    assert fake.asked == ["0"]
    assert asking.sources[0].calls.snapshot().held_back == 2


async def test_one_that_keeps_failing_is_passed_over_while_there_is_another(
    store: ResponseStore,
) -> None:
    first, second = Fake("first", SearchUnavailableError("down")), Fake("second")
    asking = broker(store, first, second)
    first.pause = 15.0
    assert await asking.search(QUERY) == echo(QUERY)
    assert first.asked == []
    assert asking.sources[0].calls.snapshot().held_back == 1
    assert "first: too many failures, circuit open" in asking.sources[0].unavailable_reason
    # The last one is asked: a provider waits itself until it may try again.
    second.pause = 15.0
    await asking.search(SearchQuery(text="another panda"))
    assert second.asked == ["red panda", "another panda"]


async def test_a_refusal_that_is_told_again_collects_nothing(store: ResponseStore) -> None:
    asking = broker(store, Fake(says=QuotaExhaustedError("used up", retry_after=60)))
    lengths = []
    for number in range(5):
        with pytest.raises(QuotaExhaustedError) as caught:
            await asking.search(SearchQuery(text=str(number)))
        lengths.append(len(caught.traceback))
    assert lengths[-1] == lengths[1]


async def test_a_provider_is_used_again_after_its_suspension(store: ResponseStore) -> None:
    fake = Fake(says=QuotaExhaustedError("used up", retry_after=0.01))
    asking = broker(store, fake)
    with pytest.raises(QuotaExhaustedError):
        await asking.search(QUERY)
    assert asking.sources[0].unavailable_reason == "used up"
    await asyncio.sleep(0.02)
    assert asking.sources[0].unavailable_reason == ""
    fake.says = echo
    assert await asking.search(QUERY) == echo(QUERY)


@pytest.mark.parametrize("limit", ["per_day", "per_run"])
async def test_a_budget_is_kept_to_the_last_search(store: ResponseStore, limit: str) -> None:
    fake = Fake()
    asking = broker(store, fake, budget=Budget(**{limit: 5}))
    queries = [SearchQuery(text=str(number)) for number in range(20)]
    answers = await asyncio.gather(*map(asking.search, queries), return_exceptions=True)
    assert len(fake.asked) == 5
    refused = [answer for answer in answers if isinstance(answer, QuotaExhaustedError)]
    assert len(refused) == 15
    assert f"search.budgets.fake.{limit}" in str(refused[0])
    # What is known costs nothing.
    known = SearchQuery(text=fake.asked[0])
    assert await asking.search(known) == kept(echo(known))


async def test_what_one_budget_refuses_costs_the_other_nothing(store: ResponseStore) -> None:
    fake = Fake()
    for run, asked in (("a", 2), ("b", 3)):
        asking = broker(store, fake, budget=Budget(per_day=3, per_run=2), run=run)
        for number in range(9):
            with contextlib.suppress(QuotaExhaustedError):
                await asking.search(SearchQuery(text=f"{run} {number}"))
        assert len(fake.asked) == asked


async def test_a_named_runs_budget_outlives_the_process(tmp_path: Path) -> None:
    for name, asked in (("a", 2), ("a", 0), ("b", 2)):
        store = SqliteStore(tmp_path / "answers.sqlite", 1 << 20)
        fake = Fake()
        asking = broker(store, fake, budget=Budget(per_run=2), run=name, ttl=0)
        for number in range(3):
            try:
                await asking.search(SearchQuery(text=str(number)))
            except QuotaExhaustedError:
                continue
        assert len(fake.asked) == asked
        await store.aclose()


class Album(ImageSearchProvider):
    def __init__(self, name: str, *titles: str, fails: SearchError | None = None) -> None:
        self.name = name
        self.asked = 0
        self._titles = titles
        self._fails = fails

    async def search(self, query: ImageQuery) -> ImageResults:
        self.asked += 1
        if self._fails is not None:
            raise self._fails
        return ImageResults(tuple(ImageResult(title, query.image) for title in self._titles))


async def test_images_are_looked_for_further_where_nothing_is_found(store: ResponseStore) -> None:
    empty, full = Album("cache"), Album("lens", "A panda")
    sources = [Source(one, one.name) for one in (empty, full)]
    asking = Broker(IMAGES, sources, store, CacheSettings())
    image = EncodedImage.from_pil(Image.new("RGB", (40, 40)))
    for again in (False, True):
        found = await asking.search(ImageQuery(image, "row-1"))
        assert found == ImageResults((ImageResult("A panda", image),), kept=again)
    assert (empty.asked, full.asked) == (1, 1)


async def test_nothing_is_found_only_where_everybody_has_looked(store: ResponseStore) -> None:
    image = EncodedImage.from_pil(Image.new("RGB", (40, 40)))
    down = Album("lens", fails=SearchUnavailableError("lens: down"))
    for albums in ([Album("cache"), down], [down, Album("cache")]):
        asking = Broker(IMAGES, [Source(one, one.name) for one in albums], store, CacheSettings())
        with pytest.raises(SearchUnavailableError, match="lens: down"):
            await asking.search(ImageQuery(image))
    refusing = Album("lens", fails=QueryRefusedError("lens: no such kind of image"))
    sources = [Source(one, one.name) for one in (Album("cache"), refusing)]
    asking = Broker(IMAGES, sources, store, CacheSettings())
    assert await asking.search(ImageQuery(image)) == ImageResults(kept=True)


@pytest.fixture(params=["file", "memory", "redis"])
async def any_store(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ResponseStore]:
    if request.param == "redis":
        # A socket's path must be short.
        with RedisServer(tmp_path_factory.mktemp("redis")) as server:
            made: ResponseStore = RedisStore(server.url, None)
            yield made
            await made.aclose()
    else:
        made = SqliteStore(tmp_path / "a" / "b" if request.param == "file" else None, 1 << 20)
        yield made
        await made.aclose()


async def test_every_store_keeps_answers_and_counts(any_store: ResponseStore) -> None:
    assert await any_store.get("key") is None
    await any_store.put("key", b"one", 60)
    await any_store.put("key", b"two\x00", 60)
    await any_store.put("never", b"x", 0)
    assert await any_store.get("key") == b"two\x00"
    assert await any_store.get("never") is None
    await any_store.put("short", b"x", 0.05)
    await asyncio.sleep(0.06)
    assert await any_store.get("short") is None
    counts = await asyncio.gather(*(any_store.add("count", 1, 60) for _ in range(50)))
    assert sorted(counts) == list(range(1, 51))
    assert await any_store.add("count", -50, 60) == 0
    await any_store.aclose()
    await any_store.aclose()


async def test_a_count_is_forgotten_some_time_after_it_last_changed(store: ResponseStore) -> None:
    await store.add("in use", 1, 0.05)
    await store.add("in use", 1, 60)
    await store.add("forgotten", 1, 0.05)
    await asyncio.sleep(0.06)
    assert await store.add("in use", 1, 60) == 3
    assert await store.add("forgotten", 1, 60) == 1


async def test_the_oldest_answers_go_when_the_file_is_full(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "answers.sqlite", 160_000)
    for number in range(400):
        await store.put(str(number), bytes(1000), 60)
    kept = [number for number in range(400) if await store.get(str(number)) is not None]
    assert kept == list(range(kept[0], 400))
    assert 130 <= len(kept) <= 160
    await store.aclose()


async def test_a_file_that_is_no_cache_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 50)
    store = SqliteStore(path, 1 << 20)
    await store.put("key", b"value", 60)
    assert await store.get("key") == b"value"
    assert len(list(tmp_path.glob("answers.broken-*"))) == 1
    await store.aclose()


async def test_a_store_that_fails_costs_searches_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    for store in (
        SqliteStore(tmp_path / "file" / "below", 1 << 20),
        RedisStore(f"unix://{tmp_path}/nobody", None),
    ):
        caplog.clear()
        fake = Fake()
        asking = broker(store, fake, budget=Budget(per_run=2))
        for number in range(4):
            try:
                await asking.search(SearchQuery(text=str(number)))
            except QuotaExhaustedError:
                continue
        assert len(fake.asked) == 2
        assert caplog.text.count("search responses are not cached") == 1
        await store.aclose()
