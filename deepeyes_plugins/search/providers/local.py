"""Text search in an index on this machine: free, offline, and the same tomorrow."""

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
    """Options of the local index."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: Path | None = Field(
        None, description="Folder that `deepeyes search index build` has made."
    )
    method: Literal["bm25", "dense"] = Field(
        "bm25", description="By words, or by meaning: for an index that was built with --dense."
    )
    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        ge=1,
        description="Queries at a time, by default one per core; more wait their turn.",
    )


class Local(TextSearchProvider):
    """BM25 over passages on disk; see :mod:`deepeyes_plugins.search.index`."""

    name = "local"
    cacheable = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Check the options; the index is opened by the first search.

        Raises:
            SearchNotConfiguredError: One of them is wrong.
        """
        self.options = read_options("providers.local", LocalOptions, options)
        self._threads: ThreadPoolExecutor | None = None
        self._index: asyncio.Future[Index] | None = None

    async def search(self, query: SearchQuery) -> SearchResults:
        """Look the words up, or what they mean, in a thread."""
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
        """Open the index, and let go of it."""
        self._read()

    async def check(self) -> str:
        """Open the index."""
        index = await self._opened()
        return f"{index.path}: {len(index)} passages, built {index.manifest.built}"

    async def aclose(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None
        self._index = None

    async def _opened(self) -> Index:
        # The first of many simultaneous searches opens it; a failure is tried again by the next.
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
                "local: no index is named; make one with `deepeyes search index build` and set "
                "search.providers.local.index to its folder, or choose another search.provider"
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
