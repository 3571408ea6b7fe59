"""Conformance suite for search providers.

Run all checks and get a report:

    report = await check_text_provider(make, Samples(known="red panda", unknown="qzxj wvkq"))
    # name of the check -> None, or what is wrong

or run each check as a test, with a provider of its own:

    @pytest.mark.parametrize("check", TEXT_CHECKS.values(), ids=list(TEXT_CHECKS))
    async def test_my_provider(check):
        await check(provider, SAMPLES)

The suite makes a few dozen searches, which count against the quota of a web engine.
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
from deepeyes_plugins.testing.verdict import failure

_CHECK_SECONDS = 120.0
_AT_ONCE = 16
_MAX_STALL = 0.5
"""Seconds for which the event loop may be blocked."""
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
    """Text queries with known outcomes.

    Attributes:
        known: Text with at least two results.
        unknown: Text without results; ``None`` for engines that always find something.
    """

    known: str
    unknown: str | None = None


@dataclass(frozen=True)
class ImageSamples:
    """Image queries with known outcomes.

    Attributes:
        known: Query with at least one result.
        unknown: Query without results; ``None`` for engines that always find something.
    """

    known: ImageQuery
    unknown: ImageQuery | None = None


TextCheck = Callable[[TextSearchProvider, Samples], Awaitable[None]]
ImageCheck = Callable[[ImageSearchProvider, ImageSamples], Awaitable[None]]

TEXT_CHECKS: Final[dict[str, TextCheck]] = {}
"""Checks of text providers by name. A check raises :class:`AssertionError` with the reason."""

IMAGE_CHECKS: Final[dict[str, ImageCheck]] = {}
"""Checks of image providers by name."""


async def check_text_provider(
    make: Callable[[], TextSearchProvider], samples: Samples
) -> dict[str, str | None]:
    """Create a text provider, run every check on it, and close it.

    Returns:
        What is wrong, by name of the check; ``None`` for a check that passed.
    """
    return await _report(make, TEXT_CHECKS, samples)


async def check_image_provider(
    make: Callable[[], ImageSearchProvider], samples: ImageSamples
) -> dict[str, str | None]:
    """Create an image provider, run every check on it, and close it.

    Returns:
        What is wrong, by name of the check; ``None`` for a check that passed.
    """
    return await _report(make, IMAGE_CHECKS, samples)


SomeSamples = TypeVar("SomeSamples")


async def _report(
    make: Callable[[], SomeProvider],
    checks: Mapping[str, Callable[[SomeProvider, SomeSamples], Awaitable[None]]],
    samples: SomeSamples,
) -> dict[str, str | None]:
    provider = make()
    try:
        return {
            name: await failure(check(provider, samples), _CHECK_SECONDS)
            for name, check in checks.items()
        }
    finally:
        await provider.aclose()


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
    """Check that the provider has a name and declares known filters only."""
    _check_name(provider)
    unknown = sorted(set(provider.filters) - FILTERS)
    assert not unknown, (
        f"expected filters among {', '.join(sorted(FILTERS))}, also found {', '.join(unknown)}"
    )


@_text
async def check_text_finds_what_is_there(provider: TextSearchProvider, samples: Samples) -> None:
    """Check that the known query has usable results, best first."""
    found = await provider.search(SearchQuery(text=samples.known))
    _check_results(found, 10)
    assert len(found.results) >= 2, (
        f"expected at least 2 results for {samples.known!r}, got {len(found.results)}"
    )
    assert any(result.snippet for result in found.results), (
        "expected a snippet in at least one result, all are empty"
    )
    scores = [result.score for result in found.results if result.score is not None]
    assert scores == sorted(scores, reverse=True), (
        f"expected results by falling score, the best is not first: scores {scores}"
    )


@_text
async def check_text_gives_no_more_than_asked(
    provider: TextSearchProvider, samples: Samples
) -> None:
    """Check that the number of results is limited to the query's count."""
    for count in (1, 2):
        found = await provider.search(SearchQuery(text=samples.known, count=count))
        _check_results(found, count)
        assert len(found.results) == count, (
            f"expected {count} results for a query with count={count}, got {len(found.results)}"
        )


@_text
async def check_text_finding_nothing_is_an_answer(
    provider: TextSearchProvider, samples: Samples
) -> None:
    """Check that a query without results is answered, not refused."""
    if samples.unknown is not None:
        found = await provider.search(SearchQuery(text=samples.unknown))
        assert not found.results, (
            f"expected no results for {samples.unknown!r}, got {len(found.results)}"
        )


@_text
async def check_text_survives_odd_queries(provider: TextSearchProvider, samples: Samples) -> None:
    """Check that any text is answered or refused, and that later queries still work."""
    for text in _ODD_TEXTS:
        try:
            _check_results(await provider.search(SearchQuery(text=text)), 10)
        except QueryRefusedError as error:
            assert str(error), (
                f"expected a message in the QueryRefusedError for {text[:40]!r}, it is empty"
            )
        except Exception as error:
            raise AssertionError(
                f"expected results or QueryRefusedError for {text[:40]!r}, got "
                f"{type(error).__name__}: {error}"
            ) from error
    assert (await provider.search(SearchQuery(text=samples.known))).results, (
        f"expected results for {samples.known!r} after odd queries, got none"
    )


@_text
async def check_text_answers_many_at_once(provider: TextSearchProvider, samples: Samples) -> None:
    """Check concurrent queries: each gets its own response, and none blocks the event loop."""
    queries = [SearchQuery(text=samples.known, count=1 + n % 2) for n in range(_AT_ONCE)]
    responses, stall = await _with_longest_stall(
        lambda: asyncio.gather(*map(provider.search, queries))
    )
    for query, found in zip(queries, responses, strict=True):
        assert len(found.results) == query.count, (
            f"expected {query.count} results for a concurrent query with count={query.count}, got "
            f"{len(found.results)}: perhaps the response to another query"
        )
    _check_stall(stall)


@_text
async def check_text_survives_a_caller_that_gives_up(
    provider: TextSearchProvider, samples: Samples
) -> None:
    """Check that a search can be cancelled, and that later queries still work."""
    query = SearchQuery(text=samples.known)
    await _cancel(provider.search(query))
    assert (await provider.search(query)).results, (
        f"expected results for {samples.known!r} after a cancelled search, got none"
    )


@_text
async def check_text_closes_twice(provider: TextSearchProvider, samples: Samples) -> None:
    """Check that ``aclose`` is idempotent. This check is the last, as it closes the provider."""
    await _close_twice(provider)


@_image
async def check_image_finds_what_is_there(
    provider: ImageSearchProvider, samples: ImageSamples
) -> None:
    """Check that the known image has results with titles and valid thumbnails."""
    _check_name(provider)
    found = await provider.search(samples.known)
    _check_image_results(found, samples.known.count)
    assert found.results, "expected at least 1 result for the known image, got none"
    assert any(result.title for result in found.results), (
        "expected a title in at least one result, all are empty"
    )


@_image
async def check_image_finding_nothing_is_an_answer(
    provider: ImageSearchProvider, samples: ImageSamples
) -> None:
    """Check that an image without results is answered, not refused."""
    if samples.unknown is not None:
        found = await provider.search(samples.unknown)
        assert not found.results, (
            f"expected no results for the unknown image, got {len(found.results)}"
        )


@_image
async def check_image_survives_broken_images(
    provider: ImageSearchProvider, samples: ImageSamples
) -> None:
    """Check that a broken image is answered or refused, and that later queries still work."""
    for data in (b"", b"no image", samples.known.image.data[:60]):
        try:
            _check_image_results(await provider.search(ImageQuery(EncodedImage(data))), 10)
        except QueryRefusedError as error:
            assert str(error), (
                "expected a message in the QueryRefusedError for a broken image, it is empty"
            )
        except Exception as error:
            raise AssertionError(
                "expected results or QueryRefusedError for a broken image, got "
                f"{type(error).__name__}: {error}"
            ) from error
    assert (await provider.search(samples.known)).results, (
        "expected results for the known image after broken ones, got none"
    )


@_image
async def check_image_answers_many_at_once(
    provider: ImageSearchProvider, samples: ImageSamples
) -> None:
    """Check concurrent queries: equal ones get equal responses, and none blocks the event loop."""
    queries = [samples.known] * _AT_ONCE
    responses, stall = await _with_longest_stall(
        lambda: asyncio.gather(*map(provider.search, queries))
    )
    assert all(found == responses[0] for found in responses), (
        "expected equal responses to equal concurrent queries, they differ"
    )
    _check_stall(stall)


@_image
async def check_image_survives_a_caller_that_gives_up(
    provider: ImageSearchProvider, samples: ImageSamples
) -> None:
    """Check that a search can be cancelled, and that later queries still work."""
    await _cancel(provider.search(samples.known))
    assert (await provider.search(samples.known)).results, (
        "expected results for the known image after a cancelled search, got none"
    )


@_image
async def check_image_closes_twice(provider: ImageSearchProvider, samples: ImageSamples) -> None:
    """Check that ``aclose`` is idempotent. This check is the last, as it closes the provider."""
    await _close_twice(provider)


Response = TypeVar("Response")


async def _with_longest_stall(
    work: Callable[[], Awaitable[Response]],
) -> tuple[Response, float]:
    """Return the result, and the longest time in seconds that the event loop was blocked."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before - 0.01)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)  # The watcher reads the clock before the work starts …
    try:
        response = await work()
        await asyncio.sleep(0.02)  # … and after it ends.
        return response, longest
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
        raise AssertionError(
            f"expected CancelledError from a cancelled search, got {error!r}"
        ) from error


async def _close_twice(provider: Provider) -> None:
    await provider.aclose()
    await provider.aclose()


def _check_name(provider: Provider) -> None:
    assert isinstance(provider.name, str) and provider.name, (
        f"expected a non-empty string as the provider's name, got {provider.name!r}"
    )


def _check_stall(stall: float) -> None:
    assert stall < _MAX_STALL, (
        f"expected the event loop to be blocked for less than {_MAX_STALL:g} s, it was for "
        f"{stall:.2f} s"
    )


def _check_results(found: SearchResults, count: int) -> None:
    _check_type_and_count(found, SearchResults, count)
    for result in found.results:
        assert result.title or result.link or result.snippet, (
            "expected a title, link or snippet in every result, one has none"
        )


def _check_image_results(found: ImageResults, count: int) -> None:
    _check_type_and_count(found, ImageResults, count)
    for result in found.results:
        assert result.title or result.thumbnail, (
            "expected a title or thumbnail in every result, one has neither"
        )
        if result.thumbnail is not None:
            fitted = fit_for_model(result.thumbnail)  # Raises ImageError for an unreadable image.
            assert fitted is result.thumbnail, (
                "expected thumbnails within the protocol's limits (fit_for_model), one has "
                f"{result.thumbnail.size} pixels"
            )


def _check_type_and_count(
    found: SearchResults | ImageResults, expected: type[object], count: int
) -> None:
    assert isinstance(found, expected), (
        f"expected {expected.__name__} from search(), got {type(found).__name__}"
    )
    assert len(found.results) <= count, (
        f"expected at most {count} results, got {len(found.results)}"
    )
