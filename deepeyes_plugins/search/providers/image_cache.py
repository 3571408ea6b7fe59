"""Provider ``cache``: image search in responses that were collected in advance."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from deepeyes_plugins.protocol.content import ImageError
from deepeyes_plugins.search.contracts import (
    ImageQuery,
    ImageResults,
    ImageSearchProvider,
    QueryRefusedError,
    SearchNotConfiguredError,
    SearchUnavailableError,
)
from deepeyes_plugins.search.image_cache import ImageCache, ImageCacheError
from deepeyes_plugins.search.settings import read_options


class CacheOptions(BaseModel):
    """Options of the provider ``cache``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path | None = Field(
        None, description="File created by `deepeyes data prepare search-cache`."
    )
    distance: int = Field(
        4,
        ge=0,
        le=64,
        description="Maximum distance between perceptual hashes, in bits of 64: 4 also matches "
        "scaled and recompressed files; above 10 different images match.",
    )


class CachedImages(ImageSearchProvider):
    """Image search in a :class:`~deepeyes_plugins.search.image_cache.ImageCache`."""

    name = "cache"
    cacheable = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Validate the options; the file is opened by the first search.

        Raises:
            SearchNotConfiguredError: An option is wrong.
        """
        self.options = read_options("image_providers.cache", CacheOptions, options)
        self._cache: ImageCache | None = None

    async def search(self, query: ImageQuery) -> ImageResults:
        """Find the response, in a thread."""
        return await asyncio.to_thread(self._search, query)

    def preflight(self) -> None:
        """Open the file."""
        self._opened()

    async def check(self) -> str:
        """Open the file and return its counts."""
        cache = await asyncio.to_thread(self._opened)
        counts = await asyncio.to_thread(cache.counts)
        return f"{cache.path}: " + ", ".join(f"{number} {what}" for what, number in counts.items())

    async def aclose(self) -> None:
        """Close the file."""
        self._cache = None

    def _search(self, query: ImageQuery) -> ImageResults:
        try:
            found = self._opened().find(
                query.image, query.data_id, distance=self.options.distance, count=query.count
            )
        except ImageError as error:
            raise QueryRefusedError(f"cache: {error}") from error
        except sqlite3.Error as error:
            raise SearchUnavailableError(
                f"cache: {self.options.path} cannot be read: {error}"
            ) from error
        return ImageResults(() if found is None else found.results)

    def _opened(self) -> ImageCache:
        if self._cache is None:
            path = self.options.path
            if path is None:
                raise SearchNotConfiguredError(
                    "cache: search.image_providers.cache.path is not set; create a cache with "
                    "`deepeyes data prepare search-cache`, or choose another "
                    "search.image_provider"
                )
            try:
                self._cache = ImageCache(path.expanduser())
            except ImageCacheError as error:
                raise SearchNotConfiguredError(f"cache: {error}") from error
        return self._cache
