"""The conformance suite passes a good provider and notices each fault of a bad one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage, ImageError, fit_for_model
from deepeyes_plugins.search.contracts import (
    ImageQuery,
    ImageResult,
    ImageResults,
    ImageSearchProvider,
    QueryRefusedError,
    SearchQuery,
    SearchResult,
    SearchResults,
    SearchUnavailableError,
    TextSearchProvider,
)
from deepeyes_plugins.testing import search as conformance
from deepeyes_plugins.testing.search import (
    IMAGE_CHECKS,
    TEXT_CHECKS,
    ImageSamples,
    Samples,
    check_image_provider,
    check_text_provider,
)

PAGES = {f"https://example.org/{number}": f"red panda fact number {number}" for number in range(30)}
SAMPLES = Samples(known="red panda", unknown="zzz")


class Pages(TextSearchProvider):
    """Finds pages that contain the query."""

    name = "pages"

    async def search(self, query: SearchQuery) -> SearchResults:
        await asyncio.sleep(0)
        if not query.text.strip():
            raise QueryRefusedError("pages: the query is empty")
        found = [
            SearchResult(title="A page", link=link, snippet=text, score=1.0)
            for link, text in PAGES.items()
            if query.text in text
        ]
        return SearchResults(results=tuple(found[: query.count]))


async def test_a_good_provider_keeps_the_contract() -> None:
    assert await check_text_provider(Pages, SAMPLES) == dict.fromkeys(TEXT_CHECKS)


class Greedy(Pages):
    async def search(self, query: SearchQuery) -> SearchResults:
        return await super().search(query.model_copy(update={"count": 10}))


class Blocking(Pages):
    async def search(self, query: SearchQuery) -> SearchResults:
        time.sleep(0.05)
        return await super().search(query)


class Fragile(Pages):
    async def search(self, query: SearchQuery) -> SearchResults:
        if "\x00" in query.text:
            raise ValueError("embedded null byte")
        return await super().search(query)


class Complaining(Pages):
    async def search(self, query: SearchQuery) -> SearchResults:
        found = await super().search(query)
        if not found.results:
            raise SearchUnavailableError("nothing found")
        return found


class Upside(Pages):
    async def search(self, query: SearchQuery) -> SearchResults:
        found = await super().search(query)
        scored = [
            result.model_copy(update={"score": float(number)})
            for number, result in enumerate(found.results)
        ]
        return SearchResults(results=tuple(scored))


class Stubborn(Pages):
    async def search(self, query: SearchQuery) -> SearchResults:
        try:
            return await super().search(query)
        except asyncio.CancelledError as error:
            raise SearchUnavailableError("cancelled") from error


@pytest.mark.parametrize(
    ("make", "check", "sentence"),
    [
        (Greedy, "gives_no_more_than_asked", "expected at most 1 results, got 10"),
        (
            Blocking,
            "answers_many_at_once",
            "expected the event loop to be blocked for less than 0.5 s",
        ),
        (Fragile, "survives_odd_queries", "embedded null byte"),
        (Complaining, "finding_nothing_is_an_answer", "nothing found"),
        (Upside, "finds_what_is_there", "the best is not first"),
        (Stubborn, "survives_a_caller_that_gives_up", "expected CancelledError"),
    ],
)
async def test_a_fault_is_told(
    make: Callable[[], TextSearchProvider],
    check: str,
    sentence: str,
) -> None:
    report = await check_text_provider(make, SAMPLES)
    assert sentence in (report[check] or "nothing")


def picture(width: int, height: int, colour: str = "red") -> EncodedImage:
    return EncodedImage.from_pil(Image.new("RGB", (width, height), colour))


IMAGE_SAMPLES = ImageSamples(
    known=ImageQuery(picture(40, 40), data_id="panda"), unknown=ImageQuery(picture(50, 50, "blue"))
)


class Album(ImageSearchProvider):
    """Knows one image."""

    name = "album"

    async def search(self, query: ImageQuery) -> ImageResults:
        await asyncio.sleep(0)
        try:
            known = query.image.size == (40, 40)
        except ImageError as error:
            raise QueryRefusedError(f"album: {error}") from error
        thumbnail = fit_for_model(picture(64, 64))
        return ImageResults((ImageResult("A panda", thumbnail),) if known else ())


async def test_a_good_image_provider_keeps_the_contract() -> None:
    assert await check_image_provider(Album, IMAGE_SAMPLES) == dict.fromkeys(IMAGE_CHECKS)


class Tiny(Album):
    async def search(self, query: ImageQuery) -> ImageResults:
        await super().search(query)
        return ImageResults((ImageResult("A panda", picture(8, 8)),))


class Broken(Album):
    async def search(self, query: ImageQuery) -> ImageResults:
        return ImageResults((ImageResult("A panda", picture(*query.image.size)),))


@pytest.mark.parametrize(
    ("make", "check", "sentence"),
    [
        (Tiny, "finds_what_is_there", "within the protocol's limits"),
        (Tiny, "finding_nothing_is_an_answer", "expected no results for the unknown image, got 1"),
        (Broken, "survives_broken_images", "ImageError"),
    ],
)
async def test_a_fault_of_an_image_provider_is_told(
    make: Callable[[], ImageSearchProvider], check: str, sentence: str
) -> None:
    report = await check_image_provider(make, IMAGE_SAMPLES)
    assert sentence in (report[check] or "nothing")


def test_every_check_is_listed() -> None:
    written = {name for name in vars(conformance) if name.startswith("check_")}
    listed = {f"check_text_{name}" for name in TEXT_CHECKS}
    listed |= {f"check_image_{name}" for name in IMAGE_CHECKS}
    assert listed == written - {"check_text_provider", "check_image_provider"}
