"""Tells whether a search provider keeps the contract: checks for whoever makes one.

All of them, as a report:

    report = await check_text_provider(make, Samples(known="red panda", unknown="qzxj wvkq"))
    # name of the check -> None, or a sentence that says what is wrong

or each as a test, with a provider of its own:

    @pytest.mark.parametrize("check", TEXT_CHECKS.values(), ids=list(TEXT_CHECKS))
    async def test_my_provider(check):
        await check(provider, SAMPLES)

Checks of a provider that asks an engine on the net use up a few dozen searches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from deepeyes_plugins.protocol.content import EncodedImage, fit_for_model
from deepeyes_plugins.search.contracts import (
    FILTERS,
    ImageQuery,
    ImageResults,
    ImageSearchProvider,
    Provider,
    QueryRefusedError,
    SearchError,
    SearchQuery,
    SearchResults,
    TextSearchProvider,
)

_CHECK_SECONDS = 120.0
_AT_ONCE = 16
_LONGEST_STALL = 0.5
"""Seconds for which an event loop may stand still; a query that blocks it takes longer."""
_ODD_TEXTS = (
    "",
    "   ",
    "?",
    '"',
    "a" * 20_000,
    "AND OR NOT ( ) site: -",
    "<|im_start|>system",
    "日本語 и русский",
    "lone \ud800 surrogate",
    "null \x00 byte",
    "line\nbreak",
)

SomeProvider = TypeVar("SomeProvider", bound=Provider)


@dataclass(frozen=True)
class Samples:
    """Queries of which it is known what a provider should say.

    Attributes:
        known: Text that brings at least two results.
        unknown: Text that brings none; ``None`` for engines that always find something.
    """

    known: str
    unknown: str | None = None


@dataclass(frozen=True)
class ImageSamples:
    """Images of which it is known what a provider should say.

    Attributes:
        known: A query that brings at least one result.
        unknown: A query that brings none; ``None`` for engines that always find something.
    """

    known: ImageQuery
    unknown: ImageQuery | None = None


TextCheck = Callable[[TextSearchProvider, Samples], Awaitable[None]]
ImageCheck = Callable[[ImageSearchProvider, ImageSamples], Awaitable[None]]

TEXT_CHECKS: Final[dict[str, TextCheck]] = {}
"""Every check of a text provider by name. A check raises AssertionError with a sentence."""

IMAGE_CHECKS: Final[dict[str, ImageCheck]] = {}
"""The same for image providers."""


async def check_text_provider(
    make: Callable[[], TextSearchProvider], samples: Samples
) -> dict[str, str | None]:
    """Make a provider, run every check on it, and close it.

    Returns:
        Name of the check to None if it holds, else to what is wrong.
    """
    return await _report(make, TEXT_CHECKS, samples)


async def check_image_provider(
    make: Callable[[], ImageSearchProvider], samples: ImageSamples
) -> dict[str, str | None]:
    """The same for an image provider."""
    return await _report(make, IMAGE_CHECKS, samples)


SomeSamples = TypeVar("SomeSamples")


async def _report(
    make: Callable[[], SomeProvider],
    checks: Mapping[str, Callable[[SomeProvider, SomeSamples], Awaitable[None]]],
    samples: SomeSamples,
) -> dict[str, str | None]:
    provider = make()
    try:
        return {name: await _verdict(check(provider, samples)) for name, check in checks.items()}
    finally:
        await provider.aclose()


async def _verdict(check: Awaitable[None]) -> str | None:
    try:
        await asyncio.wait_for(check, _CHECK_SECONDS)
    except AssertionError as error:
        return str(error) or "an assertion failed"
    except TimeoutError:
        return f"it was not done within {_CHECK_SECONDS:g} s"
    except Exception as error:
        return f"it raised {type(error).__name__}: {error}"
    return None


def _text(check: TextCheck) -> TextCheck:
    TEXT_CHECKS[getattr(check, "__name__", "").removeprefix("check_text_")] = check
    return check


def _image(check: ImageCheck) -> ImageCheck:
    IMAGE_CHECKS[getattr(check, "__name__", "").removeprefix("check_image_")] = check
    return check


@_text
async def check_text_has_a_name_and_known_filters(
    provider: TextSearchProvider, samples: Samples
) -> None:
    """It says what it is called and which filters it honours."""
    assert isinstance(provider.name, str) and provider.name, "it has no name"
    unknown = sorted(set(provider.filters) - FILTERS)
    assert not unknown, f"it claims filters that no query has: {', '.join(unknown)}"


@_text
async def check_text_finds_what_is_there(provider: TextSearchProvider, samples: Samples) -> None:
    """A known query brings results that a reader can use."""
    found = await provider.search(SearchQuery(text=samples.known))
    _look_at(found, 10)
    assert len(found.results) >= 2, f"{samples.known!r} brought {len(found.results)} results"
    assert any(result.snippet for result in found.results), "no result has a snippet"
    scores = [result.score for result in found.results if result.score is not None]
    assert scores == sorted(scores, reverse=True), f"the best is not first: scores {scores}"


@_text
async def check_text_gives_no_more_than_asked(
    provider: TextSearchProvider, samples: Samples
) -> None:
    """The count is kept, for one result too."""
    for count in (1, 2):
        found = await provider.search(SearchQuery(text=samples.known, count=count))
        _look_at(found, count)
        assert len(found.results) == count, f"{len(found.results)} results, asked for {count}"


@_text
async def check_text_finding_nothing_is_an_answer(
    provider: TextSearchProvider, samples: Samples
) -> None:
    """No result is no error."""
    if samples.unknown is not None:
        found = await provider.search(SearchQuery(text=samples.unknown))
        assert not found.results, f"{samples.unknown!r} brought {len(found.results)} results"


@_text
async def check_text_survives_odd_queries(provider: TextSearchProvider, samples: Samples) -> None:
    """Whatever a model writes is answered or refused, and the next query works."""
    for text in _ODD_TEXTS:
        try:
            _look_at(await provider.search(SearchQuery(text=text)), 10)
        except QueryRefusedError as error:
            assert str(error), f"{text[:40]!r} is refused without a word"
        except Exception as error:
            raise AssertionError(
                f"{text[:40]!r} raised {type(error).__name__}: {error}; it is to be answered, or "
                "refused by QueryRefusedError"
            ) from error
    assert (await provider.search(SearchQuery(text=samples.known))).results, "it is broken now"


@_text
async def check_text_answers_many_at_once(provider: TextSearchProvider, samples: Samples) -> None:
    """Each of many simultaneous queries gets its own answer; the event loop goes on meanwhile."""
    queries = [SearchQuery(text=samples.known, count=1 + n % 2) for n in range(_AT_ONCE)]
    answers, stall = await _watched(lambda: asyncio.gather(*map(provider.search, queries)))
    for query, found in zip(queries, answers, strict=True):
        assert len(found.results) == query.count, "a query got another one's answer"
    assert stall < _LONGEST_STALL, f"it blocked the event loop for {stall:.2f} s"


@_text
async def check_text_survives_a_caller_that_gives_up(
    provider: TextSearchProvider, samples: Samples
) -> None:
    """A cancelled search harms nobody else."""
    query = SearchQuery(text=samples.known)
    await _cancel(provider.search(query))
    assert (await provider.search(query)).results, "it is broken after a cancelled search"


@_text
async def check_text_closes_twice(provider: TextSearchProvider, samples: Samples) -> None:
    """Closing again is nothing special. The last check: the provider is of no use afterwards."""
    await _close_twice(provider)


@_image
async def check_image_finds_what_is_there(
    provider: ImageSearchProvider, samples: ImageSamples
) -> None:
    """A known image brings titles and thumbnails that a model can take."""
    assert isinstance(provider.name, str) and provider.name, "it has no name"
    found = await provider.search(samples.known)
    _look_at_images(found, samples.known.count)
    assert found.results, "the known image brought no result"
    assert any(result.title for result in found.results), "no result has a title"


@_image
async def check_image_finding_nothing_is_an_answer(
    provider: ImageSearchProvider, samples: ImageSamples
) -> None:
    """No result is no error."""
    if samples.unknown is not None:
        found = await provider.search(samples.unknown)
        assert not found.results, f"the unknown image brought {len(found.results)} results"


@_image
async def check_image_survives_broken_images(
    provider: ImageSearchProvider, samples: ImageSamples
) -> None:
    """Bytes that are no image are answered or refused, and the next query works."""
    for data in (b"", b"no image", samples.known.image.data[:60]):
        try:
            _look_at_images(await provider.search(ImageQuery(EncodedImage(data))), 10)
        except QueryRefusedError as error:
            assert str(error), "a broken image is refused without a word"
        except Exception as error:
            raise AssertionError(
                f"a broken image raised {type(error).__name__}: {error}; it is to be answered, or "
                "refused by QueryRefusedError"
            ) from error
    assert (await provider.search(samples.known)).results, "it is broken now"


@_image
async def check_image_answers_many_at_once(
    provider: ImageSearchProvider, samples: ImageSamples
) -> None:
    """Each of many simultaneous queries gets its answer; the event loop goes on meanwhile."""
    queries = [samples.known] * _AT_ONCE
    answers, stall = await _watched(lambda: asyncio.gather(*map(provider.search, queries)))
    assert all(found == answers[0] for found in answers), "equal queries got different answers"
    assert stall < _LONGEST_STALL, f"it blocked the event loop for {stall:.2f} s"


@_image
async def check_image_survives_a_caller_that_gives_up(
    provider: ImageSearchProvider, samples: ImageSamples
) -> None:
    """A cancelled search harms nobody else."""
    await _cancel(provider.search(samples.known))
    assert (await provider.search(samples.known)).results, "it is broken after a cancelled search"


@_image
async def check_image_closes_twice(provider: ImageSearchProvider, samples: ImageSamples) -> None:
    """Closing again is nothing special. The last check: the provider is of no use afterwards."""
    await _close_twice(provider)


Answer = TypeVar("Answer")


async def _watched(work: Callable[[], Awaitable[Answer]]) -> tuple[Answer, float]:
    """The result, and the longest time in seconds for which the event loop stood still."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before - 0.01)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)  # It looks at the clock before the work begins.
    try:
        answer = await work()
        await asyncio.sleep(0.02)  # And after it has ended.
        return answer, longest
    finally:
        watcher.cancel()


async def _cancel(search: Awaitable[object]) -> None:
    task = asyncio.ensure_future(search)
    await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return
    except SearchError as error:
        raise AssertionError(f"a cancelled search says {error!r} instead of ending") from error


async def _close_twice(provider: Provider) -> None:
    await provider.aclose()
    await provider.aclose()


def _look_at(found: SearchResults, count: int) -> None:
    assert isinstance(found, SearchResults), f"it returned {type(found).__name__}"
    assert len(found.results) <= count, f"{len(found.results)} results, asked for {count}"
    for result in found.results:
        assert result.title or result.link or result.snippet, "a result says nothing at all"
        _encodable(result.title + result.link + result.snippet + result.date)


def _look_at_images(found: ImageResults, count: int) -> None:
    assert isinstance(found, ImageResults), f"it returned {type(found).__name__}"
    assert len(found.results) <= count, f"{len(found.results)} results, asked for {count}"
    for result in found.results:
        assert result.title or result.thumbnail, "a result says nothing at all"
        _encodable(result.title + result.link)
        if result.thumbnail is not None:
            fitted = fit_for_model(result.thumbnail)  # Raises for what cannot be read.
            assert fitted is result.thumbnail, (
                f"a thumbnail of {result.thumbnail.size} pixels is beyond the protocol's limits"
            )


def _encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AssertionError(f"a text of the result has no UTF-8 form: {text[:80]!r}") from error
