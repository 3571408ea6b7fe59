"""Search by image on the net: Google Lens by SerpApi, and any engine that takes and gives JSON.

Sources: https://serpapi.com/google-lens-api (request and answer) and https://serpapi.com/image-api
(files: JPEG, PNG and WebP of at most 500 KB, which can be searched for during ten minutes).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import httpx
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork

from deepeyes_plugins.protocol.content import EncodedImage, ImageError
from deepeyes_plugins.remote.service import Reply
from deepeyes_plugins.search.contracts import (
    ImageQuery,
    ImageResult,
    ImageResults,
    ImageSearchProvider,
    QueryRefusedError,
)
from deepeyes_plugins.search.fetching import Fetcher, FetchError, thumbnail_rules
from deepeyes_plugins.search.providers.template import ListOfAnything, at, filled, word
from deepeyes_plugins.search.providers.web import (
    Answer,
    Options,
    WebEngine,
    WebOptions,
    WebRequest,
    Words,
    given,
)
from deepeyes_plugins.search.thumbnails import thumbnail

_UPLOAD_BYTES = 500_000
_UPLOAD_TYPES = ("image/jpeg", "image/png", "image/webp")
_UPLOAD_SIDES = (2048, 1024, 512)
"""Pixels of the longer side, tried in turn until the file is small enough."""


class ThumbnailOptions(BaseModel):
    """How thumbnails are fetched from the addresses that an engine gives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float = Field(10.0, gt=0, description="Seconds for one thumbnail.")
    ports: tuple[int, ...] = Field((80, 443), description="Ports; empty for all.")
    allowed_networks: tuple[IPvAnyNetwork, ...] = Field(
        (), description="Private networks that are fetched from nevertheless, as 10.1.0.0/16."
    )


class WebImageOptions(WebOptions):
    """Options of an engine that is asked by HTTP."""

    thumbnails: ThumbnailOptions = Field(
        default_factory=ThumbnailOptions, description="How thumbnails are fetched."
    )


@dataclass(frozen=True, slots=True)
class Match:
    """What an engine says of one page.

    Attributes:
        title: Its title.
        link: Where it is.
        thumbnail: Address of the image, a ``data:`` URL, or base64; empty if there is none.
    """

    title: str
    link: str
    thumbnail: str


class WebImages(WebEngine[Options], ImageSearchProvider):
    """Asks an engine and fetches its thumbnails. A subclass says how it is asked."""

    section = "image_providers"

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Check the options; nothing is opened yet."""
        super().__init__(options)
        self._fetcher: Fetcher | None = None

    @abstractmethod
    async def matches(self, query: ImageQuery) -> list[Match]:
        """Ask the engine.

        Raises:
            SearchError: It did not succeed.
            ImageError: The image cannot be read.
        """

    async def search(self, query: ImageQuery) -> ImageResults:
        """Ask the engine, then fetch all thumbnails at once; one that fails is left out."""
        try:
            matches = (await self.matches(query))[: query.count]
        except ImageError as error:
            raise QueryRefusedError(f"{self.name}: {error}") from error
        images = await asyncio.gather(*(self._thumbnail(one.thumbnail) for one in matches))
        results = tuple(
            ImageResult(one.title, image, one.link)
            for one, image in zip(matches, images, strict=True)
            if one.title or image is not None
        )
        wanted = [one for one in matches if one.thumbnail]
        lost = bool(wanted) and not any(images)
        return ImageResults(results, "no thumbnail could be fetched" if lost else "")

    async def aclose(self) -> None:
        """Close all connections."""
        await super().aclose()
        if self._fetcher is not None:
            await self._fetcher.aclose()
            self._fetcher = None

    async def _thumbnail(self, place: str) -> EncodedImage | None:
        if not place:
            return None
        try:
            if place.startswith(("http://", "https://")):
                data = (await self._fetching().fetch(place)).body
            else:
                encoded = place.partition(",")[2] if place.startswith("data:") else place
                data = base64.b64decode(encoded, validate=True)
            return await asyncio.to_thread(thumbnail, data)
        except (FetchError, ImageError, binascii.Error, ValueError):
            return None

    def _fetching(self) -> Fetcher:
        if self._fetcher is None:
            options: ThumbnailOptions = self.options.thumbnails  # type: ignore[attr-defined]
            self._fetcher = Fetcher(
                thumbnail_rules(
                    seconds=options.seconds, ports=options.ports, allowed=options.allowed_networks
                )
            )
        return self._fetcher


class LensOptions(WebImageOptions):
    """Options of Google Lens by SerpApi."""

    url: str = Field(
        "https://serpapi.com", pattern="^https?://", description="Base URL of the engine."
    )
    key_env: str | None = Field(
        "SERPAPI_API_KEY", description="Name of the environment variable that holds the key."
    )
    kind: Literal["visual_matches", "exact_matches"] = Field(
        "visual_matches", description="Pages with similar images, or with this image."
    )
    image_url: str | None = Field(
        None,
        pattern="^https?://",
        description="Public address of the images, where you publish them, with {data_id} or "
        "{sha256} (of the file) in it. Unset: each image is uploaded to SerpApi, reduced to its "
        "limit of 500 KB.",
    )
    language: str = Field("", description="Language of the results (hl), for instance en.")
    country: str = Field("", description="Country that one searches from, for instance us.")


class _Upload(Answer):
    image_id: str = Field(min_length=1)


class _Metadata(Answer):
    status: str


class _Match(Answer):
    title: Words = ""
    link: Words = ""
    thumbnail: Words = ""


class _Lens(Answer):
    search_metadata: _Metadata
    visual_matches: tuple[_Match, ...] = ()
    exact_matches: tuple[_Match, ...] = ()
    error: Words = ""


class SerpApiLens(WebImages[LensOptions]):
    """``POST /image``, then ``GET /search.json?engine=google_lens&image_id=…``."""

    name = "serpapi_lens"
    options_model: ClassVar[type[WebOptions]] = LensOptions
    key_parameter = "api_key"

    async def matches(self, query: ImageQuery) -> list[Match]:
        """Upload the image, unless it is public, and search for it."""
        options = self.options
        if options.image_url is not None:
            values = {"data_id": query.data_id, "sha256": query.image.sha256}
            image = {"url": filled(options.image_url, values)}
        else:
            image = {"image_id": await self._uploaded(query.image)}
        params = given(
            engine="google_lens",
            type=options.kind,
            hl=options.language,
            country=options.country,
            **image,
        )
        return await self.ask(WebRequest("/search.json", params=params), self._read)

    async def _uploaded(self, image: EncodedImage) -> str:
        """The name under which SerpApi has the image for ten minutes."""
        data, kind = await asyncio.to_thread(_small, image)
        form = httpx.Request(
            "POST", "http://form", files={"image": (f"image.{kind.partition('/')[2]}", data, kind)}
        )
        request = WebRequest(
            "/image", "POST", content=form.read(), content_type=form.headers["Content-Type"]
        )
        return await self.ask(
            request, lambda reply: _Upload.model_validate_json(reply.body).image_id
        )

    def _read(self, reply: Reply) -> list[Match]:
        found = _Lens.model_validate_json(reply.body)
        if found.search_metadata.status not in ("Success", "Cached"):
            raise reply.unreadable(
                f"a search that is {found.search_metadata.status}: {found.error}"
            )
        pages = found.visual_matches or found.exact_matches
        return [Match(page.title, page.link, page.thumbnail) for page in pages]


def _small(image: EncodedImage) -> tuple[bytes, str]:
    """The image as a file that SerpApi takes, and its type."""
    image = image.plain()
    if len(image.data) <= _UPLOAD_BYTES and image.media_type in _UPLOAD_TYPES:
        image.pil()  # Raises for one that cannot be read.
        return image.data, image.media_type
    pixels = image.pil()
    data = b""
    for side in _UPLOAD_SIDES:
        pixels.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        pixels.save(buffer, "JPEG", quality=85)
        data = buffer.getvalue()
        if len(data) <= _UPLOAD_BYTES:
            break
    return data, "image/jpeg"


class ImagePaths(BaseModel):
    """Where the parts of one result are: keys and numbers with dots between them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field("title", description="Path of the title.")
    link: str = Field("link", description="Path of the address.")
    thumbnail: str = Field(
        "thumbnail", description="Path of the image: its address, a data: URL, or base64."
    )


class ImageTemplateOptions(WebImageOptions):
    """How to ask and what to read."""

    path: str = Field("", pattern="^(/.*)?$", description="Behind the URL.")
    headers: dict[str, str] = Field(
        default_factory=dict, description="Headers; no secrets, those have key_env."
    )
    key_header: str = Field(
        "Authorization", description="Header with the key; Authorization gets a bearer token."
    )
    body: Any = Field(
        default_factory=lambda: {"image": "{image}", "data_id": "{data_id}", "count": "{count}"},
        description="JSON body. {image} (the file in base64), {media_type}, {sha256} (of the "
        "file), {data_id} and {count} are filled in.",
    )
    results: str = Field(
        "results", description="Path of the list of results; empty if the answer is the list."
    )
    fields: ImagePaths = Field(default_factory=ImagePaths, description="Paths within a result.")


class ImageTemplate(WebImages[ImageTemplateOptions]):
    """The provider ``http``: any engine that takes and gives JSON, described in agent.yaml."""

    name = "http"
    options_model: ClassVar[type[WebOptions]] = ImageTemplateOptions

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Check the options; nothing is opened yet."""
        super().__init__(options)
        self.headers = self.options.headers
        self.key_header = self.options.key_header

    async def matches(self, query: ImageQuery) -> list[Match]:
        """Fill in the template and follow the paths."""
        options, paths, image = self.options, self.options.fields, query.image
        await asyncio.to_thread(image.pil)  # Raises for one that cannot be read.
        values = {
            "image": base64.b64encode(image.data).decode("ascii"),
            "media_type": image.media_type,
            "sha256": image.sha256,
            "data_id": query.data_id,
            "count": query.count,
        }

        def read(reply: Reply) -> list[Match]:
            found = ListOfAnything(results=at(reply.json(), options.results)).results
            return [
                Match(
                    word(at(one, paths.title)),
                    word(at(one, paths.link)),
                    word(at(one, paths.thumbnail)),
                )
                for one in found
            ]

        request = WebRequest(options.path, "POST", json=filled(options.body, values))
        return await self.ask(request, read)
