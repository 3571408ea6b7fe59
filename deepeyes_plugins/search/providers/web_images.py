"""Image search of web engines: Google Lens by SerpApi, and any engine with a JSON API.

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

import aiohttp
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork

from deepeyes_plugins.protocol.content import EncodedImage, ImageError
from deepeyes_plugins.remote.redaction import protect_credentials
from deepeyes_plugins.remote.service import Reply
from deepeyes_plugins.search.contracts import (
    ImageQuery,
    ImageResult,
    ImageResults,
    ImageSearchProvider,
    QueryRefusedError,
)
from deepeyes_plugins.search.fetching import Fetcher, FetchError, thumbnail_rules
from deepeyes_plugins.search.providers.serpapi import SerpApiAnswer
from deepeyes_plugins.search.providers.template import (
    JsonApiOptions,
    ListOfAnything,
    at,
    filled,
    word,
)
from deepeyes_plugins.search.providers.web import (
    Answer,
    KeyVariable,
    Options,
    Url,
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
"""Longer sides in pixels, tried in turn until the file is small enough."""


class ThumbnailOptions(BaseModel):
    """Limits for downloads of thumbnails."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float = Field(10.0, gt=0, description="Seconds for one thumbnail.")
    ports: tuple[int, ...] = Field((80, 443), description="Allowed ports; empty for all.")
    allowed_networks: tuple[IPvAnyNetwork, ...] = Field(
        (), description="Private networks that are allowed, as 10.1.0.0/16."
    )


class WebImageOptions(WebOptions):
    """Options of the image provider of a web engine."""

    thumbnails: ThumbnailOptions = Field(
        default_factory=ThumbnailOptions, description="Limits for downloads of thumbnails."
    )


@dataclass(frozen=True, slots=True)
class Match:
    """One page of an engine's response.

    Attributes:
        title: Title of the page.
        link: URL of the page.
        thumbnail: URL of the image, a ``data:`` URL, or base64; empty if there is none.
    """

    title: str
    link: str
    thumbnail: str


class WebImages(WebEngine[Options], ImageSearchProvider):
    """Base of image providers of web engines: downloads the thumbnails of matches."""

    section = "image_providers"

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._fetcher: Fetcher | None = None

    @abstractmethod
    async def matches(self, query: ImageQuery) -> list[Match]:
        """Ask the engine.

        Raises:
            SearchError: The search failed.
            ImageError: The image cannot be read.
        """

    async def search(self, query: ImageQuery) -> ImageResults:
        """Ask the engine, then download all thumbnails concurrently; failed ones are omitted."""
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
        """Close every connection."""
        await super().aclose()
        if self._fetcher is not None:
            await self._fetcher.aclose()
            self._fetcher = None

    async def _thumbnail(self, source: str) -> EncodedImage | None:
        if not source:
            return None
        try:
            if source.startswith(("http://", "https://")):
                data = (await self._connected_fetcher().fetch(source)).body
            else:
                encoded = source.partition(",")[2] if source.startswith("data:") else source
                data = base64.b64decode(encoded, validate=True)
            return await asyncio.to_thread(thumbnail, data)
        except (FetchError, ImageError, binascii.Error, ValueError):
            return None

    def _connected_fetcher(self) -> Fetcher:
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

    url: Url = "https://serpapi.com"
    key_env: KeyVariable = "SERPAPI_API_KEY"
    kind: Literal["visual_matches", "exact_matches"] = Field(
        "visual_matches", description="Find pages with similar images, or with this image."
    )
    image_url: str | None = Field(
        None,
        pattern="^https?://",
        description="Public URL under which you publish the images, with {data_id} or {sha256} "
        "(of the file). Unset: each image is uploaded to SerpApi, reduced to its limit of 500 KB.",
    )
    language: str = Field("", description="Language of the results (hl), for instance en.")
    country: str = Field("", description="Country of the results, for instance us.")


class _Upload(Answer):
    image_id: str = Field(min_length=1)


class _Match(Answer):
    title: Words = ""
    link: Words = ""
    thumbnail: Words = ""


class _Lens(SerpApiAnswer):
    visual_matches: tuple[_Match, ...] = ()
    exact_matches: tuple[_Match, ...] = ()


class SerpApiLens(WebImages[LensOptions]):
    """``POST /image``, then ``GET /search.json?engine=google_lens&image_id=…``."""

    name = "serpapi_lens"
    options_model: ClassVar[type[WebOptions]] = LensOptions
    key_parameter = "api_key"

    async def matches(self, query: ImageQuery) -> list[Match]:
        """Search for the image; upload it first unless it has a public URL."""
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
        """Upload the image and return its id, which SerpApi accepts for ten minutes."""
        data, kind = await asyncio.to_thread(_small, image)
        form = aiohttp.MultipartWriter("form-data")
        part = form.append(data, {"Content-Type": kind})
        part.set_content_disposition(
            "form-data", name="image", filename=f"image.{kind.partition('/')[2]}"
        )
        content = await form.as_bytes()
        request = WebRequest("/image", "POST", content=content, content_type=form.content_type)
        return await self.ask(
            request, lambda reply: _Upload.model_validate_json(reply.body).image_id
        )

    def _read(self, reply: Reply) -> list[Match]:
        found = _Lens.read(reply)
        pages = found.visual_matches or found.exact_matches
        return [Match(page.title, page.link, page.thumbnail) for page in pages]


def _small(image: EncodedImage) -> tuple[bytes, str]:
    """Return the image as a file within SerpApi's limits, and its media type."""
    image = image.plain()
    if len(image.data) <= _UPLOAD_BYTES and image.media_type in _UPLOAD_TYPES:
        image.pil()  # Raises ImageError for an unreadable image.
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
    """Paths of the parts of one result: keys and list indices, separated by dots."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field("title", description="Path of the title.")
    link: str = Field("link", description="Path of the URL.")
    thumbnail: str = Field(
        "thumbnail", description="Path of the image: its URL, a data: URL, or base64."
    )


class ImageTemplateOptions(WebImageOptions, JsonApiOptions):
    """Templates of requests and paths in responses."""

    body: Any = Field(
        default_factory=lambda: {"image": "{image}", "data_id": "{data_id}", "count": "{count}"},
        description="JSON body. {image} (the file in base64), {media_type}, {sha256} (of the "
        "file), {data_id} and {count} are substituted.",
    )
    fields: ImagePaths = Field(default_factory=ImagePaths, description="Paths within a result.")


class ImageTemplate(WebImages[ImageTemplateOptions]):
    """The provider ``http``: any engine with a JSON API, described in agent.yaml."""

    name = "http"
    options_model: ClassVar[type[WebOptions]] = ImageTemplateOptions

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        protect_credentials(self.options.body)
        self.headers = self.options.headers
        self.key_header = self.options.key_header

    async def matches(self, query: ImageQuery) -> list[Match]:
        """Substitute the query into the template and follow the paths."""
        options, paths, image = self.options, self.options.fields, query.image
        await asyncio.to_thread(image.pil)  # Raises ImageError for an unreadable image.
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
