"""Base of providers of web engines: API keys, error classification, parsing of responses."""

from __future__ import annotations

import html
import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from deepeyes_plugins.protocol.content import encodable
from deepeyes_plugins.remote.errors import RemoteRefusedError, RemoteUnavailableError
from deepeyes_plugins.remote.service import RemoteService, Reply
from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.remote.urls import refuse_credentials
from deepeyes_plugins.search.contracts import (
    KeyMissingError,
    KeyRefusedError,
    Provider,
    QueryRefusedError,
    QuotaExhaustedError,
    SearchError,
    SearchNotConfiguredError,
    SearchQuery,
    SearchResult,
    SearchResults,
    SearchUnavailableError,
    TextSearchProvider,
)
from deepeyes_plugins.search.settings import read_options

# Text of errors about an account that is used up, whatever the status. Limits per second or minute
# are not meant: they pass after a pause.
_USED_UP = re.compile(
    r"credit|run out of searches|QUOTA_LIMITED|per day|daily|monthly|usage limit|plan limit",
    re.IGNORECASE,
)
_ABOUT_THE_KEY = re.compile(r"api[ _-]?key", re.IGNORECASE)
_ABOUT_THE_ACCOUNT = (400, 401, 403, 429)
"""Statuses whose text is searched for words about key and account. The text of 422 is not: it may
repeat the query, in which a model may have written anything."""
_ABOUT_THE_QUERY = (400, 413, 414, 422)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_RATE_LIMIT_SECONDS = 5.0
"""Suspension of an engine that still returns HTTP 429 after all retries."""
_TAG = re.compile(r"</?(?:b|strong|em|i|mark)>", re.IGNORECASE)


Url = Annotated[
    str,
    Field(pattern="^https?://", description="Base URL of the engine."),
    AfterValidator(lambda url: refuse_credentials(url, "key_env")),
]
KeyVariable = Annotated[
    str | None, Field(description="Name of the environment variable that holds the key.")
]


class WebOptions(RemoteSettings):
    """Options of the provider of a web engine."""

    url: Url
    key_env: KeyVariable = None
    timeout: float = Field(20.0, gt=0, description="Seconds that one request may take.")
    retries: int = Field(
        3,
        ge=0,
        description="Retries after a failed connection, a timeout, HTTP 408, 425, 429 or 5xx, or "
        "an unreadable response.",
    )
    retry_wait_maximum: float = Field(
        10.0, ge=0, description="Maximum seconds between attempts, whatever Retry-After says."
    )
    max_response_mb: float = Field(8.0, gt=0, description="Maximum size of a response, in MiB.")


@dataclass(frozen=True, slots=True)
class WebRequest:
    """One HTTP request.

    Attributes:
        path: Path below the base URL, with its slash.
        method: ``GET`` or ``POST``.
        params: Query parameters.
        json: Body, serialised as JSON.
        content: Body as bytes, instead of ``json``.
        content_type: Content type of ``content``.
    """

    path: str
    method: str = "GET"
    params: Mapping[str, str] | None = None
    json: Any = None
    content: bytes | None = None
    content_type: str = "application/json"


class Answer(BaseModel):
    """Base of models of responses: unknown fields are ignored, missing ones are errors."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def _words(value: Any) -> Any:
    if value is None:
        return ""
    return " ".join(value.split()) if isinstance(value, str) else value


Words = Annotated[str, BeforeValidator(_words)]
"""Text on one line; null becomes empty."""

Markup = Annotated[
    str,
    BeforeValidator(
        lambda value: html.unescape(_TAG.sub("", value)) if isinstance(value, str) else value
    ),
    BeforeValidator(_words),
]
"""Text on one line, from which emphasis tags and HTML entities are removed."""

_TIME = re.compile(r"(?<=^\d{4}-\d\d-\d\d)T.*", re.DOTALL)


class Page(Answer):
    """One result, under the names that engines give its parts."""

    title: Words = ""
    link: Words = Field("", validation_alias=AliasChoices("link", "url"))
    snippet: Words = Field("", validation_alias=AliasChoices("snippet", "content"))

    def result(self) -> SearchResult:
        """Return the parts that a result has."""
        return SearchResult(**self.model_dump(include=set(SearchResult.model_fields)))


class DatedPage(Page):
    """One result of an engine that says when a page was published; of a time, only the day."""

    date: Annotated[Words, AfterValidator(lambda text: _TIME.sub("", text))] = Field(
        "", validation_alias=AliasChoices("date", "publishedDate", "published_date")
    )


class ScoredPage(DatedPage):
    """One result of an engine whose scores are in the order of its results."""

    score: float | None = None


def listed(pages: Iterable[Page], partial: str = "") -> SearchResults:
    """Return the results of a response."""
    return SearchResults(results=tuple(page.result() for page in pages), partial=partial)


Options = TypeVar("Options", bound=WebOptions)
Found = TypeVar("Found")


class WebEngine(Provider, Generic[Options]):
    """Base of web engines: options, API key, connections and error classification.

    Attributes:
        section: Section of the settings that contains the options.
        options_model: Model of the options.
        options: The options.
        key_header: Header of the key; ``Authorization`` gets a bearer token.
        key_parameter: Query parameter of the key, for engines that accept no header.
        headers: Further headers.
    """

    section: ClassVar[str] = "providers"
    options_model: ClassVar[type[WebOptions]] = WebOptions
    options: Options
    key_header: str = "Authorization"
    key_parameter: str | None = None
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Validate the options without opening anything.

        Raises:
            SearchNotConfiguredError: An option is wrong.
        """
        self.options = read_options(  # type: ignore[assignment]
            f"{self.section}.{self.name}", self.options_model, options
        )
        self._service: RemoteService | None = None

    async def ask(self, request: WebRequest, results: Callable[[Reply], Found]) -> Found:
        """Send a request, with retries after transient failures.

        Args:
            request: The request.
            results: Parses a response (HTTP 2xx, JSON). It raises :class:`ValidationError` for an
                unexpected format, and :class:`RemoteUnavailableError` for a transient failure that
                the engine reports in its response.

        Raises:
            SearchError: The request failed; the contract of :meth:`search` lists the errors.
        """
        service = self._connected()

        def read(reply: Reply) -> Found:
            if reply.status >= 300:
                raise service.refusal(reply)
            document = reply.json()
            if _SURROGATE.search(reply.body):
                # Engines truncate snippets within an emoji; pydantic rejects the lone surrogate.
                text = encodable(json.dumps(document, ensure_ascii=False))
                reply = replace(reply, body=text.encode())
            try:
                return results(reply)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                raise reply.unreadable(
                    f"the response has another format than documented ({place}: {first['msg']})"
                ) from error

        try:
            return await service.call(
                request.method,
                request.path,
                read,
                params=request.params,
                json=request.json,
                content=request.content,
                content_type=request.content_type,
                is_final=lambda reply: _says_used_up(reply.status, reply.text),
                patient=self.patient,
            )
        except RemoteRefusedError as error:
            raise self._refused(error) from error
        except RemoteUnavailableError as error:
            raise self._unavailable(error) from error

    @property
    def pause(self) -> float:
        """Seconds until the circuit breaker lets a request through."""
        return 0.0 if self._service is None else self._service.circuit.wait

    def preflight(self) -> None:
        """Check that the API key is set."""
        variable = self.options.key_env
        if variable and not os.environ.get(variable, "").strip():
            raise KeyMissingError(
                f"{self.name}: the environment variable {variable} is not set; set it to the API "
                f"key, or name another one in search.{self.section}.{self.name}.key_env",
                variable=variable,
            )

    async def check(self) -> str:
        """Check that the API key is set and the engine's server answers."""
        service = self._connected()
        found = f"${self.options.key_env} is set; " if self.options.key_env else ""
        try:
            await service.call("HEAD", "/", lambda reply: reply.status, retries=0)
        except RemoteUnavailableError as error:
            if error.status is None:
                raise SearchUnavailableError(f"{self.name}: {error}") from error
        return f"{found}{self.options.url} answers"

    async def aclose(self) -> None:
        """Close the connections."""
        if self._service is not None:
            await self._service.aclose()
            self._service = None

    def _connected(self) -> RemoteService:
        """Return the HTTP client, created by the first search after the check for the key."""
        self.preflight()
        if self._service is None:
            self._service = RemoteService(
                self.options.url,
                self.options,
                key_env=self.options.key_env,
                key_header=self.key_header,
                key_parameter=self.key_parameter,
                headers=self.headers,
            )
        return self._service

    def _refused(self, error: RemoteRefusedError) -> SearchError:
        """Map a refused request to a search error."""
        variable = self.options.key_env or ""
        account = f"the account of the key in ${variable}" if variable else "the account"
        reason = str(error)
        if error.status == 402 or _says_used_up(error.status, error.text):
            return QuotaExhaustedError(
                f"{self.name}: {account} is used up: {reason}", variable=variable
            )
        about_key = error.status in (401, 403) or (
            error.status in _ABOUT_THE_ACCOUNT and _ABOUT_THE_KEY.search(error.text)
        )
        if variable and about_key:
            return KeyRefusedError(
                f"{self.name}: the key in ${variable} is refused: {reason}", variable=variable
            )
        if error.status in _ABOUT_THE_QUERY:
            return QueryRefusedError(f"{self.name}: the query is refused: {reason}")
        if error.status == 0:
            return SearchUnavailableError(f"{self.name}: {reason}")
        return SearchNotConfiguredError(
            f"{self.name}: {reason} Is search.{self.section}.{self.name}.url right?"
        )

    def _unavailable(self, error: RemoteUnavailableError) -> SearchError:
        reason = str(error)
        if error.status == 429:
            variable = self.options.key_env or ""
            return QuotaExhaustedError(
                f"{self.name}: too many requests"
                f"{f' for the key in ${variable}' if variable else ''}; lower "
                f"search.{self.section}.{self.name}.rate: {reason}",
                variable=variable,
                retry_after=error.retry_after or _RATE_LIMIT_SECONDS,
            )
        return SearchUnavailableError(f"{self.name}: {reason}")


def _says_used_up(status: int, text: str) -> bool:
    return status in _ABOUT_THE_ACCOUNT and _USED_UP.search(text) is not None


class WebProvider(WebEngine[Options], TextSearchProvider):
    """Base of text providers of web engines: a subclass builds requests and parses responses."""

    @abstractmethod
    def request(self, query: SearchQuery) -> WebRequest:
        """Build the request for ``query``."""

    @abstractmethod
    def results(self, reply: Reply, query: SearchQuery) -> SearchResults:
        """Parse the engine's response (HTTP 2xx).

        Raises:
            ValidationError: The response has another format than documented.
            RemoteUnavailableError: The response reports a transient failure.
        """

    async def search(self, query: SearchQuery) -> SearchResults:
        """Ask the engine, with retries after transient failures."""
        if not query.text.strip():
            raise QueryRefusedError(f"{self.name}: the query is empty")
        found = await self.ask(self.request(query), lambda reply: self.results(reply, query))
        return found.model_copy(update={"results": found.results[: query.count]})


def with_operators(query: SearchQuery) -> str:
    """Return the text with ``site:`` operators."""
    words = [query.text]
    if query.sites:
        words.append("(" + " OR ".join(f"site:{site}" for site in query.sites) + ")")
    words += [f"-site:{site}" for site in query.excluded_sites]
    return " ".join(words)


def google_dates(query: SearchQuery) -> str:
    """Return Google's parameter ``tbs`` for a range of days; empty for any time."""
    if query.since is None and query.until is None:
        return ""
    parts = ["cdr:1"]
    if query.since is not None:
        parts.append(f"cd_min:{query.since:%m/%d/%Y}")
    if query.until is not None:
        parts.append(f"cd_max:{query.until:%m/%d/%Y}")
    return ",".join(parts)


def given(**values: Any) -> dict[str, Any]:
    """Return the values that are not empty."""
    return {name: value for name, value in values.items() if value not in ("", None, (), [])}
