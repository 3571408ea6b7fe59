"""Google by SerpApi.

Source: https://serpapi.com/search-api (request and response) and
https://serpapi.com/api-status-and-error-codes (errors: 429 is both a limit per hour and an account
without searches; a search without results is a success with ``error`` set).
"""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field

from deepeyes_plugins.remote.service import Reply
from deepeyes_plugins.search.contracts import FILTERS, SearchQuery, SearchResults
from deepeyes_plugins.search.providers.web import (
    Answer,
    DatedPage,
    KeyVariable,
    Url,
    WebOptions,
    WebProvider,
    WebRequest,
    Words,
    given,
    google_dates,
    listed,
    with_operators,
)


class SerpApiOptions(WebOptions):
    """Options of SerpApi."""

    url: Url = "https://serpapi.com"
    key_env: KeyVariable = "SERPAPI_API_KEY"
    engine: str = Field("google", description="SerpApi's name of the engine.")


class _Metadata(Answer):
    status: str


class SerpApiAnswer(Answer):
    """Base of models of SerpApi's responses."""

    search_metadata: _Metadata
    error: Words = ""

    @classmethod
    def read(cls, reply: Reply) -> Self:
        """Parse a response.

        Raises:
            ValidationError: The response has another format than documented.
            RemoteUnavailableError: The search failed at SerpApi; it is retried.
        """
        found = cls.model_validate_json(reply.body)
        if found.search_metadata.status not in ("Success", "Cached"):
            raise reply.unreadable(
                f"the search has status {found.search_metadata.status}: {found.error}"
            )
        return found


class _Found(SerpApiAnswer):
    organic_results: tuple[DatedPage, ...] = ()


class SerpApi(WebProvider[SerpApiOptions]):
    """``GET /search.json?engine=google&q=…``; results under ``organic_results``."""

    name = "serpapi"
    filters = FILTERS
    options_model: ClassVar[type[WebOptions]] = SerpApiOptions
    key_parameter = "api_key"

    def request(self, query: SearchQuery) -> WebRequest:
        """Build a request; sites by Google's operators, dates by ``tbs``."""
        params = given(
            engine=self.options.engine,
            q=with_operators(query),
            num=str(query.count),
            gl=query.region.lower(),
            hl=query.language,
            tbs=google_dates(query),
        )
        return WebRequest("/search.json", params=params)

    def results(self, reply: Reply, query: SearchQuery) -> SearchResults:
        """Return the organic results."""
        return listed(_Found.read(reply).organic_results)
