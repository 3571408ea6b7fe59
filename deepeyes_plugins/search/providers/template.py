"""Provider ``http``: any engine with a JSON API, described in agent.yaml."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from deepeyes_plugins.remote.redaction import protect_credentials
from deepeyes_plugins.remote.service import Reply
from deepeyes_plugins.search.contracts import FILTERS, SearchQuery, SearchResult, SearchResults
from deepeyes_plugins.search.providers.web import WebOptions, WebProvider, WebRequest

_PLACES: dict[str, Callable[[SearchQuery], Any]] = {
    "query": lambda query: query.text,
    "count": lambda query: query.count,
    "language": lambda query: query.language,
    "region": lambda query: query.region,
    "sites": lambda query: list(query.sites),
    "excluded_sites": lambda query: list(query.excluded_sites),
    "since": lambda query: query.since.isoformat() if query.since else "",
    "until": lambda query: query.until.isoformat() if query.until else "",
}
_PLACE = re.compile(r"\{([a-z0-9_]+)\}")


class FieldPaths(BaseModel):
    """Paths of the parts of one result: keys and list indices, separated by dots."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field("title", description="Path of the title.")
    link: str = Field("link", description="Path of the URL.")
    snippet: str = Field("snippet", description="Path of the text.")
    date: str = Field("date", description="Path of the date.")
    score: str = Field("score", description="Path of the score; higher is better.")


class JsonApiOptions(WebOptions):
    """Options of any engine with a JSON API, for text and for images."""

    path: str = Field("", pattern="^(/.*)?$", description="Path below the base URL.")
    headers: dict[str, str] = Field(
        default_factory=dict, description="Headers without secrets; the API key is in key_env."
    )
    key_header: str = Field(
        "Authorization", description="Header of the key; Authorization gets a bearer token."
    )
    results: str = Field(
        "results", description="Path of the list of results; empty if the response is the list."
    )


class TemplateOptions(JsonApiOptions):
    """Templates of requests and paths in responses."""

    method: Literal["GET", "POST"] = Field("GET", description="HTTP method.")
    key_parameter: str | None = Field(
        None, description="Query parameter of the key, instead of a header."
    )
    params: dict[str, str] = Field(
        default_factory=dict,
        description="Query parameters. {query}, {count}, {language}, {region}, {sites}, "
        "{excluded_sites}, {since} and {until} are substituted.",
    )
    body: Any = Field(
        None,
        description="JSON body with the same substitutions; a text that is only `{count}` becomes "
        "a number, `{sites}` a list.",
    )
    fields: FieldPaths = Field(default_factory=FieldPaths, description="Paths within a result.")


class ListOfAnything(BaseModel):
    """Response whose list of results has entries of any type."""

    results: list[Any]


class Template(WebProvider[TemplateOptions]):
    """The provider ``http``."""

    name = "http"
    options_model: ClassVar[type[WebOptions]] = TemplateOptions

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Derive the supported filters from the template."""
        super().__init__(options)
        named = set(_PLACE.findall(repr((self.options.params, self.options.body))))
        self.filters = frozenset(name for name in FILTERS if name in named)
        protect_credentials((self.options.params, self.options.body))
        self.headers = self.options.headers
        self.key_header = self.options.key_header
        self.key_parameter = self.options.key_parameter

    def request(self, query: SearchQuery) -> WebRequest:
        """Substitute the query into the template."""
        values = {name: value(query) for name, value in _PLACES.items()}
        params = {name: _text(value, values) for name, value in self.options.params.items()}
        return WebRequest(
            self.options.path,
            self.options.method,
            params=params or None,
            json=filled(self.options.body, values),
        )

    def results(self, reply: Reply, query: SearchQuery) -> SearchResults:
        """Follow the paths; missing parts are empty."""
        found = ListOfAnything(results=at(reply.json(), self.options.results)).results
        return SearchResults(results=tuple(self._result(entry) for entry in found))

    def _result(self, entry: Any) -> SearchResult:
        paths = self.options.fields
        score = at(entry, paths.score)
        return SearchResult(
            title=word(at(entry, paths.title)),
            link=word(at(entry, paths.link)),
            snippet=word(at(entry, paths.snippet)),
            date=word(at(entry, paths.date)),
            score=float(score) if isinstance(score, int | float) else None,
        )


def filled(template: Any, values: Mapping[str, Any]) -> Any:
    """Substitute ``{name}`` in all texts; a text that is only ``{name}`` becomes the value.

    Unknown names are left unchanged.
    """
    if isinstance(template, str):
        whole = _PLACE.fullmatch(template)
        return values[whole[1]] if whole and whole[1] in values else _text(template, values)
    if isinstance(template, Mapping):
        return {key: filled(value, values) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [filled(value, values) for value in template]
    return template


def _text(template: str, values: Mapping[str, Any]) -> str:
    def fill(place: re.Match[str]) -> str:
        value = values.get(place[1], place[0])
        return ",".join(value) if isinstance(value, list) else str(value)

    return _PLACE.sub(fill, template)


def at(value: Any, path: str) -> Any:
    """Return the value at a path; ``None`` if it is missing."""
    for step in filter(None, path.split(".")):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def word(value: Any) -> str:
    """Return a value as text on one line; null becomes empty."""
    return "" if value is None else " ".join(str(value).split())
