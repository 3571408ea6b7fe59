"""Search by image through the service: a real one, in front of a cache of images."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.rollout import Task
from deepeyes_plugins.search.client import Search
from deepeyes_plugins.search.contracts import ImageQuery, ImageResult, QueryRefusedError
from deepeyes_plugins.search.image_cache import ImageCacheWriter
from deepeyes_plugins.search.settings import SearchSettings
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.image_search import ImageSearchTool
from deepeyes_plugins.tools.resources import Resources
from tests.search.service import Service
from tests.search.test_image_cache import encoded, photo

LEFT = (0, 0, 160, 240)
THUMBNAIL = encoded(Image.new("RGB", (64, 48), "green"))
PHOTO = photo(1)
UNKNOWN = encoded(photo(2))
LIMIT = 64 << 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with ImageCacheWriter(folder / "images.sqlite") as writer:
        writer.answer("q1", [ImageResult("A panda", THUMBNAIL, "https://example.org/1")])
        writer.answer("left", [ImageResult("Its left half", None)])
        writer.question("q1", encoded(PHOTO))
        writer.question("left", encoded(PHOTO.crop(LEFT)))
    cache = {"path": str(folder / "images.sqlite"), "distance": 4}
    with Service(folder, {"image_provider": "cache", "image_providers": {"cache": cache}}) as one:
        yield one


@pytest.fixture
async def search(service: Service) -> AsyncIterator[Search]:
    client = Search(SearchSettings(url=service.url))
    yield client
    await client.aclose()


async def post(service: Service, content: bytes | dict[str, Any]) -> httpx.Response:
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:
        if isinstance(content, bytes):
            return await http.post("/image_search", content=content)
        return await http.post("/image_search", json=content)


async def test_by_id(search: Search) -> None:
    """Whatever the image."""
    found = await search.images.search(ImageQuery(UNKNOWN, "q1"))
    assert found.results == (ImageResult("A panda", THUMBNAIL, "https://example.org/1"),)


@pytest.mark.parametrize(
    "image",
    {
        "the same file": encoded(PHOTO),
        "the same pixels in another file": encoded(PHOTO, "BMP"),
        "recompressed": encoded(PHOTO, "JPEG", quality=60),
        "scaled": encoded(PHOTO.resize((480, 360))),
    }.items(),
    ids=lambda one: one[0],
)
async def test_by_content(search: Search, image: tuple[str, EncodedImage]) -> None:
    found = await search.images.search(ImageQuery(image[1], "a name it does not know"))
    assert [one.title for one in found.results] == ["A panda"]


async def test_an_unknown_image_is_an_answer_without_results(
    search: Search, service: Service
) -> None:
    found = await search.images.search(ImageQuery(UNKNOWN, "q3"))
    assert (found.results, found.partial) == ((), "")
    body = {"image": base64.b64encode(UNKNOWN.data).decode()}
    answer = await post(service, body)
    assert (answer.status_code, answer.json()) == (200, {})


async def test_a_model_searches_for_a_crop(service: Service) -> None:
    settings = SearchSettings(url=service.url, image_region=True, image_searches=3)
    resources = Resources(AgentSettings(search=settings))
    tool = ImageSearchTool(resources)
    await tool.open(Task("q1", (Message("user", (encoded(PHOTO), "Who?")),)))
    titles = {}
    for name, region in {"all": None, "left": LEFT, "right": (160, 0, 320, 240)}.items():
        arguments = {} if region is None else {"region": list(region)}
        parts = (await tool.call(arguments)).parts
        titles[name] = "".join(part for part in parts if isinstance(part, str))
    await resources.aclose()
    assert "[A panda]" in titles["all"]
    assert "[Its left half]" in titles["left"]
    assert "found 0 results" in titles["right"]


async def test_what_is_no_image_is_refused(search: Search, service: Service) -> None:
    with pytest.raises(QueryRefusedError, match="cache: "):
        await search.images.search(ImageQuery(EncodedImage(b"no image"), "q3"))
    for body, told in (
        ({"image": "no base64!"}, "image: "),
        ({"image": base64.b64encode(b"x").decode()}, "cache: "),
        ({"image": 7}, "image: "),
        ({"data_id": "q1"}, "image: Field required"),
        ({"image": "", "count": 0}, "count: "),
        (b"\x89PNG\r\n", "body: Invalid JSON"),
    ):
        answer = await post(service, body)
        assert (answer.status_code, answer.json()["kind"]) == (422, "query_refused"), body
        assert told in answer.json()["message"], body


async def test_an_oversized_body_is_refused_and_the_service_goes_on(
    search: Search, service: Service
) -> None:
    answer = await post(service, b'{"image": "' + b"A" * LIMIT)
    assert (answer.status_code, answer.json()["kind"]) == (422, "query_refused")
    assert f"at most {LIMIT} bytes" in answer.json()["message"]
    with pytest.raises(QueryRefusedError, match="at most"):
        await search.images.search(ImageQuery(EncodedImage(b"\x89PNG" * (LIMIT // 4))))
    assert (await search.images.search(ImageQuery(UNKNOWN, "q1"))).results
