"""Tavily.

Source: https://docs.tavily.com/documentation/api-reference/endpoint/search (at most 20 results;
HTTP 432 and 433: the plan's or the account's limit is reached).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from deepeyes_plugins.remote.errors import RemoteRefusedError
from deepeyes_plugins.remote.service import Reply
from deepeyes_plugins.search.contracts import (
    QuotaExhaustedError,
    SearchError,
    SearchQuery,
    SearchResults,
)
from deepeyes_plugins.search.providers.web import (
    Answer,
    KeyVariable,
    ScoredPage,
    Url,
    WebOptions,
    WebProvider,
    WebRequest,
    given,
    listed,
)

_MOST_RESULTS = 20
_LIMIT_STATUSES = (432, 433)


class TavilyOptions(WebOptions):
    """Options of Tavily."""

    url: Url = "https://api.tavily.com"
    key_env: KeyVariable = "TAVILY_API_KEY"
    depth: Literal["basic", "advanced"] = Field(
        "basic", description="Search depth; `advanced` is slower and costs twice as much."
    )


class _Found(Answer):
    results: tuple[ScoredPage, ...]


class Tavily(WebProvider[TavilyOptions]):
    """``POST /search {"query", "max_results", …}``; results under ``results``."""

    name = "tavily"
    filters = frozenset({"sites", "excluded_sites", "since", "until"})
    options_model: ClassVar[type[WebOptions]] = TavilyOptions

    def request(self, query: SearchQuery) -> WebRequest:
        """Build a request for at most 20 results.

        Tavily's countries are English names, so the filter ``region`` is not supported.
        """
        body = given(
            query=query.text,
            max_results=min(query.count, _MOST_RESULTS),
            search_depth=self.options.depth,
            include_domains=list(query.sites),
            exclude_domains=list(query.excluded_sites),
            start_date=query.since.isoformat() if query.since else "",
            end_date=query.until.isoformat() if query.until else "",
        )
        return WebRequest("/search", "POST", json=body)

    def results(self, reply: Reply, query: SearchQuery) -> SearchResults:
        """Return the results with their scores."""
        return listed(_Found.model_validate_json(reply.body).results)

    def _refused(self, error: RemoteRefusedError) -> SearchError:
        if error.status in _LIMIT_STATUSES:
            variable = self.options.key_env or ""
            return QuotaExhaustedError(
                f"tavily: the plan of the key in ${variable} is used up: {error}",
                variable=variable,
            )
        return super()._refused(error)
