"""Provider ``retriever``: servers that implement Search-R1's retrieval contract.

Source: PeterGriffinJin/Search-R1, search_r1/search/retrieval_server.py: ``POST /retrieve
{"queries": [str], "topk": int, "return_scores": bool}`` is answered by ``{"result": [[{"document":
{"contents": str, …}, "score": float}]]}``, one list for each query. The first line of ``contents``
is the title, in quotes.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from deepeyes_plugins.remote.service import Reply
from deepeyes_plugins.search.contracts import SearchQuery, SearchResult, SearchResults
from deepeyes_plugins.search.providers.web import (
    Answer,
    Url,
    WebOptions,
    WebProvider,
    WebRequest,
    Words,
)


class RetrieverOptions(WebOptions):
    """Options of a retrieval server."""

    url: Url = "http://127.0.0.1:8000"
    path: str = Field("/retrieve", pattern="^/", description="Path below the base URL.")


class _Document(Answer):
    contents: str
    title: Words = ""
    url: Words = ""


class _Hit(Answer):
    document: _Document
    score: float | None = None


class _Found(Answer):
    result: tuple[tuple[_Hit, ...], ...] = Field(min_length=1, max_length=1)


class Retriever(WebProvider[RetrieverOptions]):
    """Passages of a retrieval server; most have no link."""

    name = "retriever"
    options_model: ClassVar[type[WebOptions]] = RetrieverOptions

    def request(self, query: SearchQuery) -> WebRequest:
        """Build a request with one query."""
        body = {"queries": [query.text], "topk": query.count, "return_scores": True}
        return WebRequest(self.options.path, "POST", json=body)

    def results(self, reply: Reply, query: SearchQuery) -> SearchResults:
        """Return the passages."""
        [hits] = _Found.model_validate_json(reply.body).result
        return SearchResults(results=tuple(map(_passage, hits)))


def _passage(hit: _Hit) -> SearchResult:
    title, _, text = hit.document.contents.partition("\n")
    if hit.document.title:
        title, text = hit.document.title, text or title
    return SearchResult(
        title=title.strip().strip('"'),
        link=hit.document.url,
        snippet=text.strip(),
        score=hit.score,
    )


def as_document(result: SearchResult, number: int) -> dict[str, Any]:
    """Return a result in the format of this contract, for servers.

    Args:
        result: The result.
        number: Its rank, from 0, from which a score is derived if it has none.
    """
    return {
        "document": {
            "id": result.link or str(number),
            "contents": f'"{result.title}"\n{result.snippet}',
            "title": result.title,
            "url": result.link,
        },
        "score": result.score if result.score is not None else 1.0 / (number + 1),
    }
