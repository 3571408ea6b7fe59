"""Brave Search.

Source: https://api-dashboard.search.brave.com/api-reference/web/search/get (at most 20 results,
400 characters and 50 words) and https://api.search.brave.com/app/documentation/web-search/codes
(languages).
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import ClassVar, Literal

from pydantic import Field

from deepeyes_plugins.remote.service import Reply
from deepeyes_plugins.search.contracts import FILTERS, SearchQuery, SearchResult, SearchResults
from deepeyes_plugins.search.providers.web import (
    Answer,
    KeyVariable,
    Markup,
    Page,
    Url,
    WebOptions,
    WebProvider,
    WebRequest,
    Words,
    given,
    listed,
    with_operators,
)

_MOST_RESULTS = 20
_LANGUAGES = {"ja": "jp", "pt": "pt-br", "zh": "zh-hans"}
"""Where Brave's codes are not those of ISO 639-1."""


class BraveOptions(WebOptions):
    """Options of Brave."""

    url: Url = "https://api.search.brave.com"
    key_env: KeyVariable = "BRAVE_API_KEY"
    extra_snippets: bool = Field(
        False, description="Request further excerpts of each page, if the plan includes them."
    )


class _Page(Page):
    title: Markup = ""
    description: Markup = ""
    extra_snippets: tuple[Markup, ...] = ()
    age: Words = ""
    page_age: Words = ""

    def result(self) -> SearchResult:
        """Return the result with its excerpts and the age that Brave shows."""
        snippet = " ".join([self.description, *self.extra_snippets]).strip()
        date = self.age or self.page_age
        return super().result().model_copy(update={"snippet": snippet, "date": date})


class _Web(Answer):
    results: tuple[_Page, ...] = ()


class _Found(Answer):
    type: Literal["search"]
    web: _Web | None = None


class Brave(WebProvider[BraveOptions]):
    """``GET /res/v1/web/search?q=…``; results under ``web.results``."""

    name = "brave"
    filters = FILTERS
    options_model: ClassVar[type[WebOptions]] = BraveOptions
    key_header = "X-Subscription-Token"

    def request(self, query: SearchQuery) -> WebRequest:
        """Build a request for at most 20 results; sites by operators, dates by ``freshness``."""
        params = given(
            q=with_operators(query),
            count=str(min(query.count, _MOST_RESULTS)),
            country=query.region,
            search_lang=_LANGUAGES.get(query.language, query.language),
            freshness=_freshness(query),
            extra_snippets="true" if self.options.extra_snippets else "",
        )
        params |= {"text_decorations": "false", "result_filter": "web"}
        return WebRequest("/res/v1/web/search", params=params)

    def results(self, reply: Reply, query: SearchQuery) -> SearchResults:
        """Return the web results; the response has no block ``web`` if there are none."""
        found = _Found.model_validate_json(reply.body)
        return listed(found.web.results if found.web is not None else ())


def _freshness(query: SearchQuery) -> str:
    """Return the range of dates; Brave requires both ends."""
    if query.since is None and query.until is None:
        return ""
    since = query.since or date(1990, 1, 1)
    until = query.until or datetime.now(UTC).date()
    return f"{since.isoformat()}to{until.isoformat()}"
