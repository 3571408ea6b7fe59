"""SearXNG, an open metasearch engine.

Source: https://docs.searxng.org/dev/search_api.html. The instance must allow JSON (``formats`` in
its settings.yml); otherwise it returns HTTP 403.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from deepeyes_plugins.remote.errors import RemoteRefusedError
from deepeyes_plugins.remote.service import Reply
from deepeyes_plugins.search.contracts import (
    SearchError,
    SearchNotConfiguredError,
    SearchQuery,
    SearchResults,
)
from deepeyes_plugins.search.providers.web import (
    Answer,
    ScoredPage,
    Url,
    WebOptions,
    WebProvider,
    WebRequest,
    given,
    listed,
    with_operators,
)


class SearxngOptions(WebOptions):
    """Options of SearXNG."""

    url: Url = "http://127.0.0.1:8888"
    categories: tuple[str, ...] = Field(
        (), description="Categories; by default those of the instance."
    )
    engines: tuple[str, ...] = Field((), description="Engines; by default those of the instance.")


class _Found(Answer):
    results: tuple[ScoredPage, ...]
    unresponsive_engines: tuple[tuple[Any, ...], ...] = ()


class Searxng(WebProvider[SearxngOptions]):
    """``GET /search?format=json&q=…``; the first page of results."""

    name = "searxng"
    filters = frozenset({"language", "region", "sites", "excluded_sites"})
    options_model: ClassVar[type[WebOptions]] = SearxngOptions

    def request(self, query: SearchQuery) -> WebRequest:
        """Build a request; sites by operators, which SearXNG passes on to its engines."""
        language = query.language or ("all" if query.region else "")
        params = given(
            q=with_operators(query),
            language="-".join(filter(None, [language, query.region])),
            categories=",".join(self.options.categories),
            engines=",".join(self.options.engines),
        )
        return WebRequest("/search", params={**params, "format": "json"})

    def results(self, reply: Reply, query: SearchQuery) -> SearchResults:
        """Return the results, marked as partial if engines did not answer."""
        found = _Found.model_validate_json(reply.body)
        silent = ", ".join(str(engine[0]) for engine in found.unresponsive_engines if engine)
        return listed(found.results, partial=f"no answer from {silent}" if silent else "")

    def _refused(self, error: RemoteRefusedError) -> SearchError:
        if error.status == 403:
            return SearchNotConfiguredError(
                f"searxng: {error} Does the instance allow JSON? Its settings.yml needs `json` "
                "under search.formats."
            )
        return super()._refused(error)
