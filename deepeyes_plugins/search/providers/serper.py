"""Google by Serper.

Source: the request and response examples of the playground at serper.dev (an account is needed);
an independent description is api-evangelist/serper, openapi/serper-google-search-api-openapi.yml.
"""

from __future__ import annotations

from typing import ClassVar

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
    given,
    google_dates,
    listed,
    with_operators,
)


class SerperOptions(WebOptions):
    """Options of Serper."""

    url: Url = "https://google.serper.dev"
    key_env: KeyVariable = "SERPER_API_KEY"


class _Found(Answer):
    searchParameters: dict[str, object]
    organic: tuple[DatedPage, ...] = ()


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
        return listed(_Found.model_validate_json(reply.body).organic)
