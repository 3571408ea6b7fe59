"""Image search on the net, against servers that speak the documented APIs."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.search.contracts import (
    ImageQuery,
    ImageSearchProvider,
    KeyMissingError,
    KeyRefusedError,
    QueryRefusedError,
    QuotaExhaustedError,
    SearchUnavailableError,
)
from deepeyes_plugins.search.providers.web_images import ImageTemplate, SerpApiLens
from deepeyes_plugins.testing.search import IMAGE_CHECKS, ImageCheck, ImageSamples
from tests.search.test_image_cache import bomb, encoded, photo
from tests.serving import LocalServer

KNOWN, OTHER = encoded(photo(1)), encoded(photo(2))


class Engine:
    """Google Lens by SerpApi, and another engine; ``fault`` makes it fail in a documented way."""

    def __init__(self) -> None:
        self.uploads: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.last: dict[str, Any] = {}
        self.fault = ""

    async def upload(self, request: Request) -> Response:
        if self.fault == "upload":
            return JSONResponse({"error": "Invalid image format."}, 400)
        async with request.form() as form:
            file = form["image"]
            assert not isinstance(file, str)
            data = await file.read()
        if len(data) > 500_000 or file.content_type not in (
            "image/png",
            "image/jpeg",
            "image/webp",
        ):
            return JSONResponse({"error": "Invalid image"}, 400)
        name = f"id{len(self.uploads)}"
        self.uploads[name] = data
        return JSONResponse({"message": "Image uploaded successfully.", "image_id": name})

    async def search(self, request: Request) -> Response:
        ask = dict(request.query_params)
        self.last = ask
        self.asked["search"] += 1
        if ask.get("api_key") != "secret":
            return JSONResponse({"error": "Invalid API key. Your API key should be here."}, 401)
        if self.fault == "quota":
            return JSONResponse({"error": "Your account has run out of searches."}, 429)
        if self.fault == "broken":
            return Response('{"visual_matches": [', media_type="application/json")
        known = ask.get("url", "").startswith("https://pictures.test/") or (
            self.uploads.get(ask.get("image_id", "")) == KNOWN.data
        )
        status = {"search_metadata": {"id": "1", "status": "Success"}}
        if not known:
            said = "Google Lens hasn't returned any results for this query."
            return JSONResponse({**status, "error": said})
        thumbnail = request.url_for("thumbnail", name="none" if self.fault == "images" else "good")
        bad = request.url_for("thumbnail", name="bomb")
        pages = [
            {"position": 1, "title": "A  panda", "link": "https://a.test", "source": "a",
             "thumbnail": str(thumbnail)},
            {"position": 2, "title": "No thumbnail", "link": "https://b.test", "thumbnail": None},
            {"position": 3, "title": "A bomb", "thumbnail": str(bad)},
        ]  # fmt: skip
        return JSONResponse({**status, ask["type"]: pages})

    async def thumbnail(self, request: Request) -> Response:
        bodies = {"good": encoded(photo(3, (16, 16))).data, "bomb": bomb()}
        body = bodies.get(request.path_params["name"])
        return Response(status_code=404) if body is None else Response(body, media_type="image/png")

    async def other(self, request: Request) -> Response:
        ask = json.loads(await request.body())
        self.last = ask
        if request.headers.get("X-Key") != "secret":
            return JSONResponse({"error": "no"}, 401)
        known = base64.b64decode(ask["picture"]["data"]) == KNOWN.data
        image = base64.b64encode(encoded(photo(3)).data).decode()
        pages = [
            {"page": {"name": "Inline"}, "image": image},
            {"page": {"name": "As URL"}, "image": f"data:image/png;base64,{image}"},
            {"page": {"name": "Nothing"}, "image": "?"},
        ]
        return JSONResponse({"data": {"hits": pages if known else []}})


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def server(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    monkeypatch.setenv("SERPAPI_API_KEY", "secret")
    routes = [
        Route("/image", engine.upload, methods=["POST"]),
        Route("/search.json", engine.search),
        Route("/thumbnails/{name}", engine.thumbnail, name="thumbnail"),
        Route("/other", engine.other, methods=["POST"]),
    ]
    with LocalServer(*routes) as running:
        yield running


THUMBNAILS = {"ports": (), "allowed_networks": ["127.0.0.1/32"]}


def lens(server: LocalServer, **options: Any) -> SerpApiLens:
    return SerpApiLens(
        {"url": server.root, "thumbnails": THUMBNAILS, "retries": 1, "retry_wait": 0.01, **options}
    )


def template(server: LocalServer) -> ImageTemplate:
    return ImageTemplate(
        {
            "url": server.root,
            "path": "/other",
            "key_env": "SERPAPI_API_KEY",
            "key_header": "X-Key",
            "body": {"picture": {"data": "{image}", "type": "{media_type}"}, "n": "{count}"},
            "results": "data.hits",
            "fields": {"title": "page.name", "thumbnail": "image"},
        }
    )


@pytest.mark.parametrize("check", IMAGE_CHECKS.values(), ids=list(IMAGE_CHECKS))
@pytest.mark.parametrize("make", [lens, template])
async def test_the_contract_is_kept(
    server: LocalServer, check: ImageCheck, make: Callable[[LocalServer], ImageSearchProvider]
) -> None:
    provider = make(server)
    await check(provider, ImageSamples(ImageQuery(KNOWN, "q1"), ImageQuery(OTHER, "q2")))
    await provider.aclose()


class TestLens:
    async def test_images_are_uploaded_and_searched_for(
        self, server: LocalServer, engine: Engine
    ) -> None:
        provider = lens(server, language="en", country="de")
        found = await provider.search(ImageQuery(KNOWN))
        await provider.aclose()
        assert [result.title for result in found.results] == ["A panda", "No thumbnail", "A bomb"]
        first, second, third = (result.thumbnail for result in found.results)
        assert first is not None and first.size == (32, 32)
        assert second is None and third is None
        assert found.partial == ""
        assert engine.last == {
            "engine": "google_lens", "type": "visual_matches", "hl": "en", "country": "de",
            "image_id": "id0", "api_key": "secret",
        }  # fmt: skip

    async def test_public_images_are_named(self, server: LocalServer, engine: Engine) -> None:
        provider = lens(
            server, image_url="https://pictures.test/{data_id}/{sha256}.png", kind="exact_matches"
        )
        found = await provider.search(ImageQuery(KNOWN, "q1"))
        await provider.aclose()
        assert len(found.results) == 3
        assert engine.last["url"] == f"https://pictures.test/q1/{KNOWN.sha256}.png"
        assert not engine.uploads

    @pytest.mark.parametrize("form", ["BMP", "PNG"])
    async def test_other_kinds_and_large_files_are_brought_within_the_limits(
        self, server: LocalServer, engine: Engine, form: str
    ) -> None:
        provider = lens(server)
        await provider.search(ImageQuery(encoded(photo(5, (1600, 1200)), form)))
        await provider.aclose()
        (uploaded,) = engine.uploads.values()
        assert EncodedImage(uploaded).media_type == "image/jpeg"
        assert len(uploaded) <= 500_000

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            ("quota", QuotaExhaustedError),
            ("broken", SearchUnavailableError),
            ("upload", QueryRefusedError),
        ],
    )
    async def test_faults_have_their_names(
        self, server: LocalServer, engine: Engine, fault: str, error: type[Exception]
    ) -> None:
        provider, engine.fault = lens(server), fault
        with pytest.raises(error):
            await provider.search(ImageQuery(KNOWN))
        await provider.aclose()

    async def test_keys_have_their_errors(
        self, server: LocalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SERPAPI_API_KEY", "wrong")
        provider = lens(server)
        with pytest.raises(KeyRefusedError, match=r"\$SERPAPI_API_KEY"):
            await provider.search(ImageQuery(KNOWN))
        await provider.aclose()
        monkeypatch.delenv("SERPAPI_API_KEY")
        with pytest.raises(
            KeyMissingError, match=r"search\.image_providers\.serpapi_lens\.key_env"
        ):
            await lens(server).search(ImageQuery(KNOWN))

    async def test_an_answer_without_any_of_its_thumbnails_is_partial(
        self, server: LocalServer, engine: Engine
    ) -> None:
        provider, engine.fault = lens(server), "images"
        found = await provider.search(ImageQuery(KNOWN))
        await provider.aclose()
        assert found.partial == "no thumbnail could be fetched"
        assert len(found.results) == 3

    async def test_thumbnails_in_private_places_are_not_fetched(self, server: LocalServer) -> None:
        provider = lens(server, thumbnails={"ports": ()})
        found = await provider.search(ImageQuery(KNOWN))
        await provider.aclose()
        assert not any(result.thumbnail for result in found.results)


async def test_a_template_fills_in_and_reads_what_it_says(
    server: LocalServer, engine: Engine
) -> None:
    provider = template(server)
    found = await provider.search(ImageQuery(KNOWN, count=7))
    await provider.aclose()
    assert [result.title for result in found.results] == ["Inline", "As URL", "Nothing"]
    assert [result.thumbnail is not None for result in found.results] == [True, True, False]
    assert engine.last["n"] == 7
    assert engine.last["picture"]["type"] == "image/png"
