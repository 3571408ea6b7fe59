"""Answers to searches by image, converted once and found by name, file, pixels and look."""

from __future__ import annotations

import io
import json
import os
import pickle
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typer.testing import CliRunner

from deepeyes_plugins.cli.main import app
from deepeyes_plugins.protocol.content import EncodedImage, ImageError, fit_for_model
from deepeyes_plugins.search.contracts import (
    ImageQuery,
    ImageResult,
    SearchNotConfiguredError,
    SearchUnavailableError,
)
from deepeyes_plugins.search.fetching import thumbnail_rules
from deepeyes_plugins.search.image_cache import ImageCache, ImageCacheError, ImageCacheWriter
from deepeyes_plugins.search.image_conversion import convert
from deepeyes_plugins.search.perceptual_hash import nearest, perceptual_hash, pixel_hash
from deepeyes_plugins.search.providers.image_cache import CachedImages
from deepeyes_plugins.search.thumbnails import MOST_PIXELS, thumbnail
from deepeyes_plugins.testing.search import IMAGE_CHECKS, ImageCheck, ImageSamples
from tests.search.test_fetching import HOME
from tests.serving import LocalServer


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Smooth blobs of colour with a little grain, different for each seed."""
    chance = np.random.default_rng(seed)
    coarse = Image.fromarray(chance.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    grain = chance.integers(-8, 8, pixels.shape)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options: int) -> EncodedImage:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return EncodedImage(buffer.getvalue())


def bomb(side: int = 20_000) -> bytes:
    """A small PNG file that says it is very large."""
    data = bytearray(encoded(Image.new("1", (8, 8))).data)
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


class Published:
    """A cache as DeepEyesV2 publishes it, with all that is odd in one, and its questions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        images = folder / "images"
        images.mkdir()
        encoded(photo(1), "JPEG").data and (images / "a.jpg").write_bytes(
            encoded(photo(1), "JPEG").data
        )
        (images / "tiny.png").write_bytes(encoded(photo(2, (8, 8))).data)
        (images / "long.png").write_bytes(encoded(photo(3, (3000, 6))).data)
        (images / "big.png").write_bytes(encoded(photo(4, (1600, 1200))).data)
        (images / "bomb.png").write_bytes(bomb())
        (images / "page.jpg").write_bytes(b"<html>not found</html>")
        (folder.parent / "outside.png").write_bytes(encoded(photo(5)).data)
        names = ["a.jpg", "tiny.png", "long.png", "big.png", None, "bomb.png", "page.jpg",
                 "missing.png", "../../outside.png"]  # fmt: skip
        entry = {
            "tool_returned_web_title": [f"<image> {name} \ud800" for name in names],
            "cached_images_path": [name and f"images/{name}" for name in names],
            "other": 1,
        }
        empty: dict[str, list[str]] = {"tool_returned_web_title": [], "cached_images_path": []}
        self.cache = folder / "cache.json"
        self.cache.write_text(json.dumps({"fvqa_1": entry, "fvqa_2": empty}))
        self.questions = {name: encoded(photo(10 + number), "JPEG", quality=95)
                          for number, name in enumerate(("fvqa_1", "fvqa_2", "other"))}  # fmt: skip
        self.parquet = folder / "rl.parquet"
        rows = [
            {"extra_info": {"index": name}, "images": [{"bytes": image.data, "path": None}]}
            for name, image in self.questions.items()
        ]
        rows.append({"extra_info": {"index": "fvqa_1"}, "images": [{"bytes": b"no", "path": None}]})
        rows.append({"extra_info": {"index": "fvqa_1"}, "images": []})
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), self.parquet)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("published") / "cache"
    folder.mkdir()
    return Published(folder)


@pytest.fixture(scope="module")
def cache(published: Published) -> ImageCache:
    path = published.folder / "converted.sqlite"
    counts = convert([published.cache], path, questions=[published.parquet])
    assert counts == {"answers": 2, "results": 4, "thumbnails": 4, "null": 1, "missing": 4,
                      "questions": 2, "broken_questions": 1, "not_fetched": 0}  # fmt: skip
    return ImageCache(path)


class TestFinding:
    def test_by_name(self, cache: ImageCache) -> None:
        found = cache.find(EncodedImage(b"whatever"), "fvqa_1")
        assert found is not None and found.way == "id"
        titles = [result.title for result in found.results]
        assert titles == [
            f"<image> {name} �" for name in ("a.jpg", "tiny.png", "long.png", "big.png")
        ]

    def test_gives_no_more_than_asked(self, cache: ImageCache) -> None:
        found = cache.find(EncodedImage(b""), "fvqa_1", count=2)
        assert found is not None and len(found.results) == 2

    def test_thumbnails_are_within_the_limits_of_the_protocol(self, cache: ImageCache) -> None:
        found = cache.find(EncodedImage(b""), "fvqa_1")
        assert found is not None
        images = [result.thumbnail for result in found.results]
        assert [image.size for image in images if image] == [
            (320, 240),
            (32, 32),
            (768, 32),
            (768, 576),
        ]
        assert all(image is not None and fit_for_model(image) is image for image in images)

    def test_an_answer_without_results_is_one(self, cache: ImageCache) -> None:
        found = cache.find(EncodedImage(b""), "fvqa_2")
        assert found is not None and found.results == ()

    def test_by_file(self, cache: ImageCache, published: Published) -> None:
        found = cache.find(published.questions["fvqa_1"], "another name")
        assert found is not None and (found.way, found.data_id) == ("file", "fvqa_1")

    def test_by_pixels(self, cache: ImageCache, published: Published) -> None:
        found = cache.find(encoded(published.questions["fvqa_1"].pil()))
        assert found is not None and (found.way, found.data_id) == ("pixels", "fvqa_1")

    @pytest.mark.parametrize("change", ["smaller", "recompressed", "cropped by little"])
    def test_by_look(self, cache: ImageCache, published: Published, change: str) -> None:
        image = published.questions["fvqa_1"].pil()
        changed = {
            "smaller": lambda: encoded(image.resize((160, 120))),
            "recompressed": lambda: encoded(image, "JPEG", quality=30),
            "cropped by little": lambda: encoded(image.crop((2, 2, 318, 238))),
        }[change]()
        found = cache.find(changed, distance=8)
        assert found is not None and (found.way, found.data_id) == ("likeness", "fvqa_1")
        if found.distance:
            assert cache.find(changed, distance=found.distance - 1) is None

    def test_another_image_is_not_found(self, cache: ImageCache, published: Published) -> None:
        assert cache.find(published.questions["other"], "other", distance=10) is None

    def test_an_image_of_one_tone_is_like_no_other(self, tmp_path: Path) -> None:
        with ImageCacheWriter(tmp_path / "c") as writer:
            writer.answer("blank", [ImageResult("Blank")])
            writer.question("blank", encoded(Image.new("RGB", (50, 50), "white")))
        cache = ImageCache(tmp_path / "c")
        assert cache.find(encoded(Image.new("RGB", (60, 60), "white")), distance=64) is None
        assert cache.find(encoded(Image.new("RGB", (50, 50), "white"))) is not None

    def test_an_open_cache_goes_on_when_its_file_is_replaced(self, tmp_path: Path) -> None:
        image = encoded(photo(1))
        for name in ("old", "new"):
            with ImageCacheWriter(tmp_path / "c") as writer:
                writer.answer(name, [ImageResult(name)])
                writer.question(name, image)
            if name == "old":
                cache = ImageCache(tmp_path / "c")
        smaller = encoded(photo(1).resize((160, 120)))
        with ThreadPoolExecutor() as threads:
            for asked in (image, smaller):
                found = threads.submit(cache.find, asked, distance=8).result()
                assert found is not None and found.results == (ImageResult("old"),)

    def test_what_is_no_image_is_an_error(self, cache: ImageCache) -> None:
        with pytest.raises(ImageError):
            cache.find(EncodedImage(b"no image"))


@pytest.mark.parametrize("check", IMAGE_CHECKS.values(), ids=list(IMAGE_CHECKS))
async def test_the_provider_keeps_the_contract(
    cache: ImageCache, published: Published, check: ImageCheck
) -> None:
    provider = CachedImages({"path": str(cache.path)})
    samples = ImageSamples(
        ImageQuery(published.questions["fvqa_1"], "fvqa_1"),
        ImageQuery(published.questions["other"], "other"),
    )
    await check(provider, samples)
    await provider.aclose()


@pytest.mark.parametrize("path", [None, "missing", "."])
async def test_the_provider_without_a_cache_says_how_to_make_one(
    tmp_path: Path, path: str | None
) -> None:
    provider = CachedImages({} if path is None else {"path": str(tmp_path / path)})
    with pytest.raises(SearchNotConfiguredError, match="data prepare search-cache"):
        await provider.search(ImageQuery(encoded(photo(1))))


async def test_a_file_that_is_damaged_is_unavailable(tmp_path: Path) -> None:
    with ImageCacheWriter(tmp_path / "c") as writer:
        for number in range(200):
            writer.answer(f"q{number}", [ImageResult("x" * 1000)])
    provider = CachedImages({"path": str(tmp_path / "c")})
    provider.preflight()
    os.truncate(tmp_path / "c", 8192)
    with pytest.raises(SearchUnavailableError, match="cannot be read"):
        await provider.search(ImageQuery(EncodedImage(b""), "q150"))


async def image(request: Request) -> Response:
    answers = {
        "good": Response(encoded(photo(7)).data, media_type="image/png"),
        "bomb": Response(bomb(), media_type="image/png"),
        "page": Response("<html>", media_type="text/html"),
    }
    return answers.get(request.path_params["name"], Response(status_code=404))


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(Route("/{name}", image)) as running:
        yield running


class TestConversion:
    def pickled(self, folder: Path, server: LocalServer) -> Path:
        places = [f"{server.root}/{name}" for name in ("good", "bomb", "page", "none")]
        entry = {
            "tool_returned_web_title_list": [*places, "no image"],
            "tool_returned_images_urls": [*places, None],
        }
        path = folder / "fvqa_train_image_search_results_cache.pkl"
        path.write_bytes(pickle.dumps({"fvqa_train_1": entry}))
        return path

    def test_of_a_pickle_fetches_what_it_is_told_to(
        self, tmp_path: Path, server: LocalServer
    ) -> None:
        source = self.pickled(tmp_path, server)
        rules = thumbnail_rules(ports=(), allowed=(HOME,))
        counts = convert([source], tmp_path / "c", rules=rules)
        assert (counts["results"], counts["thumbnails"], counts["not_fetched"]) == (4, 1, 3)
        assert counts["null"] == 1

    def test_of_a_pickle_fetches_nothing_else(self, tmp_path: Path, server: LocalServer) -> None:
        source = self.pickled(tmp_path, server)
        for rules in (None, thumbnail_rules(ports=())):
            counts = convert([source], tmp_path / "c", rules=rules)
            assert (counts["results"], counts["thumbnails"]) == (4, 0)

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (pickle.dumps({"a": Path("x")}), "is not allowed"),
            (b"{broken", "cannot be read"),
            (b'{"a": {"titles": []}}', "not a cache of image searches: a.tool_returned_web_title"),
            (b'{"a": [1]}', "not a cache of image searches: a"),
            (b'{"a": {"tool_returned_web_title": [1], "cached_images_path": []}}', "valid string"),
            (b"[" * 100_000, "not a readable pickle"),
            (b'{"a":' * 100_000, "cannot be read"),
            (b"{}", "no responses"),
        ],
        ids=range(8),
    )
    def test_of_anything_else_says_what_is_wrong(
        self, tmp_path: Path, content: bytes, complaint: str
    ) -> None:
        source = tmp_path / "source"
        source.write_bytes(content)
        with pytest.raises(ImageCacheError, match=complaint):
            convert([source], tmp_path / "c")
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    def test_that_fails_leaves_what_was_there(self, tmp_path: Path, published: Published) -> None:
        path = tmp_path / "c"
        convert([published.cache], path)
        before = path.read_bytes()
        (tmp_path / "no.parquet").write_bytes(b"no parquet")
        with pytest.raises(ImageCacheError, match=r"no\.parquet"):
            convert([published.cache], path, questions=[tmp_path / "no.parquet"])
        assert path.read_bytes() == before
        assert sorted(one.name for one in tmp_path.iterdir()) == ["c", "no.parquet"]

    def test_by_the_command(self, tmp_path: Path, published: Published) -> None:
        def run(*arguments: object) -> tuple[int, Any]:
            result = CliRunner().invoke(app, ["search", "image-cache", *map(str, arguments)])
            return result.exit_code, result

        path = tmp_path / "c"
        status, result = run(
            "convert", published.cache, "-o", path, "--questions", published.parquet, "--json"
        )
        assert status == 0, result.output
        assert json.loads(result.stdout)["questions"] == 2
        aside = published.folder.parent / "aside.json"
        aside.write_bytes(published.cache.read_bytes())
        with pytest.warns(FutureWarning) as warned:
            status, result = run(
                "convert", aside, "--images", published.folder, "-o", path, "--json"
            )
        assert json.loads(result.stdout)["thumbnails"] == 4, result.output
        assert [str(one.message).partition(": use ")[2] for one in warned] == [
            "deepeyes data prepare search-cache",
            "--media",
        ]
        assert json.loads(run("info", path, "--json")[1].stdout)["answers"] == 2
        assert "questions" in run("info", path)[1].stdout
        status, result = run("info", published.cache)
        assert status == 1
        assert "not an image cache" in " ".join(result.stderr.split())
        for place, told in ((tmp_path, "is a folder"), (path / "below", "File exists")):
            status, result = run("convert", published.cache, "-o", place)
            assert (status, told in " ".join(result.stderr.split())) == (1, True), result.stderr


class TestThumbnails:
    def test_that_fit_stay_as_they_are(self) -> None:
        data = encoded(photo(1)).data
        assert thumbnail(data).data == data

    @pytest.mark.parametrize("data", [b"", b"<svg/>", bomb(), encoded(photo(1)).data[:100]])
    def test_that_cannot_be_decoded_are_refused(self, data: bytes) -> None:
        with pytest.raises(ImageError):
            thumbnail(data)

    def test_that_are_too_large_to_decode_are_refused_by_their_header(self) -> None:
        with pytest.raises(ImageError, match="too large for a thumbnail"):
            thumbnail(bomb(int(MOST_PIXELS**0.5) + 1))

    @given(st.integers(1, 2000), st.integers(1, 60))
    def test_are_within_all_limits(self, long: int, short: int) -> None:
        for size in ((long, short), (short, long)):
            fitted = thumbnail(encoded(Image.new("L", size)).data)
            assert max(fitted.size) <= 768
            assert fit_for_model(fitted) is fitted


class TestFingerprints:
    def test_pixels_tell_sizes_apart(self) -> None:
        assert pixel_hash(Image.new("RGB", (4, 2))) != pixel_hash(Image.new("RGB", (2, 4)))

    def test_different_images_differ_in_about_half_of_the_bits(self) -> None:
        hashes = [perceptual_hash(photo(seed)) for seed in range(60)]
        distances = [
            (one ^ other).bit_count()
            for number, one in enumerate(hashes)
            for other in hashes[:number]
            if one is not None and other is not None
        ]
        assert min(distances) > 8
        assert 28 < sum(distances) / len(distances) < 36

    @given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.integers(0, 2**64 - 1))
    def test_the_nearest_is_the_first_of_the_nearest(self, known: list[int], wanted: int) -> None:
        distances = [(one ^ wanted).bit_count() for one in known]
        best = min(distances)
        assert nearest(np.array(known, dtype=np.uint64), wanted) == (distances.index(best), best)
