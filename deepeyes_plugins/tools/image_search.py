"""Image search tool."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from deepeyes_plugins.protocol.content import EncodedImage, ImageError, fit_for_model
from deepeyes_plugins.protocol.observations import SearchResult, image_search_observation
from deepeyes_plugins.rollout.contracts import Observation, Task
from deepeyes_plugins.search.contracts import (
    ImageQuery,
    ImageResults,
)
from deepeyes_plugins.tools.image_tools import BoxError, clamp_box
from deepeyes_plugins.tools.resources import Resources
from deepeyes_plugins.tools.search import (
    ArgumentError,
    BaseSearchTool,
    answer_figures,
    cut,
)

logger = logging.getLogger(__name__)


class ImageSearchTool(BaseSearchTool[ImageQuery, ImageResults]):
    """Searches by the original image of the question.

    It works ``search.image_searches`` times per trajectory; failed searches (no provider, an
    invalid region) are not counted.
    """

    name = "image_search"
    kind = "image"
    refused = "the image cannot be searched for"

    def __init__(self, resources: Resources) -> None:
        super().__init__(resources)
        self._coordinates = resources.settings.coordinates
        self._image: EncodedImage | None = None
        self._data_id = ""
        self._made = 0
        if self._settings.image_region:
            region = {
                "type": "array",
                "items": {"type": "number"},
                "minItems": 4,
                "maxItems": 4,
                "description": "Search for this part of the image: [x1, y1, x2, y2] "
                f"{self._coordinates.description}.",
            }
            self.schema = {"type": "object", "properties": {"region": region}}

    async def open(self, task: Task) -> None:
        """Store the question's first image, and look up whether search is on for the task."""
        await super().open(task)
        self._image = task.images[0] if task.images else None
        self._data_id = task.id
        self._made = 0

    async def query(self, arguments: Mapping[str, Any]) -> ImageQuery:
        """Return the query; ``arguments["region"]`` is used only if the settings allow it."""
        if self._image is None:
            raise ArgumentError("the question has no image to search for")
        limit = self._settings.image_searches
        if self._made >= limit:
            times = "once" if limit == 1 else f"{limit} times"
            raise ArgumentError(f"{self.name} works at most {times} per question; go on without it")
        region = arguments.get("region") if self._settings.image_region else None
        try:
            return await asyncio.to_thread(self._query, self._image, region)
        except BoxError as error:
            raise ArgumentError(str(error)) from error

    async def find(self, query: ImageQuery) -> ImageResults:
        """Search with the image providers."""
        return await self._search.images.search(query)

    async def observation(self, arguments: Mapping[str, Any], found: ImageResults) -> Observation:
        """Return titles and thumbnails within their limits."""
        self._made += 1
        shown = await asyncio.to_thread(self._shown, found)
        images = float(sum(result.image is not None for result in shown))
        return Observation(
            image_search_observation(shown), figures={**answer_figures(found), "images": images}
        )

    def _query(self, image: EncodedImage, region: Any) -> ImageQuery:
        if region is None:
            return ImageQuery(image, self._data_id, self._settings.count)
        pixels = image.pil()
        crop = pixels.crop(clamp_box(region, *pixels.size, self._coordinates, "region"))
        return ImageQuery(EncodedImage.from_pil(crop), count=self._settings.count)

    def _shown(self, found: ImageResults) -> list[SearchResult]:
        """Return the results that fit the limits; the first is always included."""
        kept: list[SearchResult] = []
        room = self._settings.total_characters
        for result in found.results:
            title = cut(result.title, self._settings.title_characters)
            if kept and len(title) > room:
                break
            room -= len(title)
            kept.append(SearchResult(title, image=_fitted(result.thumbnail)))
        return kept


def _fitted(image: EncodedImage | None) -> EncodedImage | None:
    """Return the image if the policy accepts it; thumbnails of providers are not trusted."""
    try:
        return None if image is None else fit_for_model(image)
    except ImageError as error:
        logger.info("a thumbnail is dropped: %s", error)
        return None
