"""Provider ``local``: text search in an index on disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deepeyes_plugins.extras import install_command
from deepeyes_plugins.search.contracts import (
    SearchNotConfiguredError,
    SearchQuery,
    SearchResult,
    SearchResults,
    TextSearchProvider,
)
from deepeyes_plugins.search.corpus import LocalIndexError
from deepeyes_plugins.search.settings import read_options

if TYPE_CHECKING:
    from deepeyes_plugins.search.index import Index


class LocalOptions(BaseModel):
    """Options of the provider ``local``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: Path | None = Field(None, description="Folder created by `deepeyes search index build`.")
    method: Literal["bm25", "dense"] = Field(
        "bm25", description="Ranking; `dense` needs an index that was built with --dense."
    )
    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="Maximum number of concurrent queries; by default one per core.",
    )


class Local(TextSearchProvider):
    """Text search in an :class:`~deepeyes_plugins.search.index.Index`."""

    name = "local"
    cacheable = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Validate the options; the index is opened by the first search.

        Raises:
            SearchNotConfiguredError: An option is wrong.
        """
        self.options = read_options("providers.local", LocalOptions, options)
        self._threads: ThreadPoolExecutor | None = None
        self._index: asyncio.Future[Index] | None = None

    async def search(self, query: SearchQuery) -> SearchResults:
        """Search the index, in a thread."""
        index = await self._opened()
        loop = asyncio.get_running_loop()
        search = index.search if self.options.method == "bm25" else index.search_dense
        try:
            hits = await loop.run_in_executor(self._threads, search, query.text, query.count)
        except LocalIndexError as error:
            raise SearchNotConfiguredError(f"local: {error}") from error
        return SearchResults(
            results=tuple(
                SearchResult(
                    title=hit.passage.title,
                    link=hit.passage.link or hit.passage.id,
                    snippet=hit.passage.text,
                    date=hit.passage.date,
                    score=hit.score,
                )
                for hit in hits
            )
        )

    def preflight(self) -> None:
        """Open the index and close it again."""
        self._read()

    async def check(self) -> str:
        """Open the index and return its size."""
        index = await self._opened()
        return f"{index.path}: {len(index)} passages, built {index.manifest.built}"

    async def aclose(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None
        self._index = None

    async def _opened(self) -> Index:
        # Concurrent searches share one attempt to open the index; the next search retries.
        if self._index is None or (self._index.done() and self._index.exception() is not None):
            self._index = asyncio.ensure_future(self._open())
        return await asyncio.shield(self._index)

    async def _open(self) -> Index:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(
                self.options.threads, thread_name_prefix="deepeyes-index"
            )
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read)

    def _read(self) -> Index:
        path = self.options.index
        if path is None:
            raise SearchNotConfiguredError(
                "local: search.providers.local.index is not set; create an index with "
                "`deepeyes search index build`, or choose another search.provider"
            )
        try:
            from deepeyes_plugins.search.index import Index
        except ModuleNotFoundError as error:
            raise SearchNotConfiguredError(
                f"local: {error}; {install_command('search')}"
            ) from error
        try:
            index = Index(path.expanduser())
            if self.options.method == "dense":
                index.expect_vectors()
        except LocalIndexError as error:
            raise SearchNotConfiguredError(f"local: {error}") from error
        return index
