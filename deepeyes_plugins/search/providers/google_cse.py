"""Google's Custom Search JSON API.

Source: https://developers.google.com/custom-search/v1/reference/rest/v1/cse/list (at most 10
results a request) and …/v1/Search (the answer; ``items`` is missing where nothing was found).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from deepeyes_plugins.remote.service import Reply
from deepeyes_plugins.search.contracts import FILTERS, SearchQuery, SearchResults
from deepeyes_plugins.search.providers.web import (
    Answer,
    KeyVariable,
    Page,
    Url,
    WebOptions,
    WebProvider,
    WebRequest,
    given,
    listed,
    with_operators,
)

_MOST_RESULTS = 10


class GoogleOptions(WebOptions):
    """Options of Google's API."""

    url: Url = "https://customsearch.googleapis.com"
    key_env: KeyVariable = "GOOGLE_API_KEY"
    engine_id: str = Field(description="Id of the programmable search engine (cx).")


class _Found(Answer):
    kind: Literal["customsearch#search"]
    items: tuple[Page, ...] = ()


class GoogleCse(WebProvider[GoogleOptions]):
    """``GET /customsearch/v1?cx=…&q=…``; results under ``items``."""

    name = "google_cse"
    filters = FILTERS
    options_model: ClassVar[type[WebOptions]] = GoogleOptions
    key_header = "X-Goog-Api-Key"

    def request(self, query: SearchQuery) -> WebRequest:
        """Build a request for at most 10 results; sites by operators, dates by ``sort``."""
        params = given(
            cx=self.options.engine_id,
            q=with_operators(query),
            num=str(min(query.count, _MOST_RESULTS)),
            gl=query.region.lower(),
            lr=f"lang_{query.language}" if query.language else "",
            sort=_dates(query),
        )
        return WebRequest("/customsearch/v1", params=params)

    def results(self, reply: Reply, query: SearchQuery) -> SearchResults:
        """Return the items."""
        return listed(_Found.model_validate_json(reply.body).items)


def _dates(query: SearchQuery) -> str:
    if query.since is None and query.until is None:
        return ""
    since = f"{query.since:%Y%m%d}" if query.since else ""
    until = f"{query.until:%Y%m%d}" if query.until else ""
    return f"date:r:{since}:{until}"
