"""Exa.

Source: https://exa.ai/docs/reference/search (request and response) and
https://exa.ai/docs/reference/error-codes (402: the account or the key's budget is used up).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from deepeyes_plugins.remote.service import Reply
from deepeyes_plugins.search.contracts import SearchQuery, SearchResult, SearchResults
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
    listed,
)


class ExaOptions(WebOptions):
    """Options of Exa."""

    url: Url = "https://api.exa.ai"
    key_env: KeyVariable = "EXA_API_KEY"
    type: Literal["auto", "fast", "neural", "keyword", "deep"] = Field(
        "auto", description="Exa's kind of search."
    )
    contents: Literal["highlights", "text"] = Field(
        "highlights", description="Content of snippets: excerpts, or the beginning of the page."
    )
    text_characters: int = Field(
        1500, ge=1, description="Maximum length of a snippet for `contents: text`."
    )


class _Page(DatedPage):
    highlights: tuple[Words, ...] = ()
    text: Words = ""

    def result(self) -> SearchResult:
        """Return the result; Exa's scores may be in another order and are left out."""
        snippet = " … ".join(self.highlights) or self.text
        return super().result().model_copy(update={"snippet": snippet})


class _Found(Answer):
    results: tuple[_Page, ...]


class Exa(WebProvider[ExaOptions]):
    """``POST /search {"query", "numResults", "contents", …}``; results under ``results``."""

    name = "exa"
    filters = frozenset({"region", "sites", "excluded_sites", "since", "until"})
    options_model: ClassVar[type[WebOptions]] = ExaOptions
    key_header = "x-api-key"

    def request(self, query: SearchQuery) -> WebRequest:
        """Build a request for at most 100 results; dates become times in UTC."""
        contents: dict[str, Any] = {"highlights": True}
        if self.options.contents == "text":
            contents = {"text": {"maxCharacters": self.options.text_characters}}
        body = given(
            query=query.text,
            type=self.options.type,
            numResults=query.count,
            contents=contents,
            userLocation=query.region,
            includeDomains=list(query.sites),
            excludeDomains=list(query.excluded_sites),
            startPublishedDate=f"{query.since}T00:00:00.000Z" if query.since else "",
            endPublishedDate=f"{query.until}T23:59:59.999Z" if query.until else "",
        )
        return WebRequest("/search", "POST", json=body)

    def results(self, reply: Reply, query: SearchQuery) -> SearchResults:
        """Return the results in Exa's order."""
        return listed(_Found.model_validate_json(reply.body).results)
