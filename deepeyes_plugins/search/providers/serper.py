"""Google by Serper.

Source: the request and response examples of the playground at serper.dev (an account is needed);
an independent description is api-evangelist/serper, openapi/serper-google-search-api-openapi.yml.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from deepeyes_plugins.remote.service import Reply
from deepeyes_plugins.search.contracts import FILTERS, SearchQuery, SearchResult, SearchResults
from deepeyes_plugins.search.providers.web import (
    Answer,
    WebOptions,
    WebProvider,
    WebRequest,
    Words,
    given,
    google_dates,
    with_operators,
)


class SerperOptions(WebOptions):
    """Options of Serper."""

    url: str = Field(
        "https://google.serper.dev", pattern="^https?://", description="Base URL of the engine."
    )
    key_env: str | None = Field(
        "SERPER_API_KEY", description="Name of the environment variable that holds the key."
    )


class _Page(Answer):
    title: Words = ""
    link: Words = ""
    snippet: Words = ""
    date: Words = ""


class _Found(Answer):
    searchParameters: dict[str, object]
    organic: tuple[_Page, ...] = ()


class Serper(WebProvider[SerperOptions]):
    """``POST /search {"q", "num", "gl", "hl", "tbs"}``; results under ``organic``."""

    name = "serper"
    filters = FILTERS
    options_model: ClassVar[type[WebOptions]] = SerperOptions
    key_header = "X-API-KEY"

    def request(self, query: SearchQuery) -> WebRequest:
        """Build a request for at most 100 results; sites by operators, dates by ``tbs``."""
        body = given(
            q=with_operators(query),
            num=query.count,
            gl=query.region.lower(),
            hl=query.language,
            tbs=google_dates(query),
        )
        return WebRequest("/search", "POST", json=body)

    def results(self, reply: Reply, query: SearchQuery) -> SearchResults:
        """Return the organic results."""
        found = _Found.model_validate_json(reply.body)
        return SearchResults(
            results=tuple(SearchResult(**page.model_dump()) for page in found.organic)
        )
