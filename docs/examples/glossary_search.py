"""A search provider that answers from a file of terms: one "term: explanation" on each line."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from deepeyes_plugins import hookimpl
from deepeyes_plugins.search.contracts import (
    SearchNotConfiguredError,
    SearchQuery,
    SearchResult,
    SearchResults,
    TextProviderFactory,
    TextSearchProvider,
)


class GlossarySearch(TextSearchProvider):
    name = "glossary"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._path = Path(options.get("path", "glossary.txt"))

    def preflight(self) -> None:
        if not self._path.is_file():
            raise SearchNotConfiguredError(f"search.providers.glossary.path: no file {self._path}")

    async def search(self, query: SearchQuery) -> SearchResults:
        found = [entry for entry in self._entries if entry.title.lower() in query.text.lower()]
        return SearchResults(results=tuple(found[: query.count]))

    @cached_property
    def _entries(self) -> list[SearchResult]:
        self.preflight()
        lines = [line.partition(":") for line in self._path.read_text().splitlines()]
        return [
            SearchResult(title=term.strip(), snippet=explanation.strip())
            for term, colon, explanation in lines
            if colon and term.strip()
        ]


@hookimpl
def register_search_providers(register: Callable[[str, TextProviderFactory], None]) -> None:
    register(GlossarySearch.name, GlossarySearch)
