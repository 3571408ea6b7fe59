"""What the providers that ask an engine by HTTP have in common: keys, errors, reading answers."""

from __future__ import annotations

import html
import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from deepeyes_plugins.protocol.content import encodable
from deepeyes_plugins.remote.errors import RemoteRefusedError, RemoteUnavailableError
from deepeyes_plugins.remote.service import RemoteService, Reply
from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.search.contracts import (
    KeyMissingError,
    KeyRefusedError,
    Provider,
    QueryRefusedError,
    QuotaExhaustedError,
    SearchError,
    SearchNotConfiguredError,
    SearchQuery,
    SearchResults,
    SearchUnavailableError,
    TextSearchProvider,
)
from deepeyes_plugins.search.settings import read_options

# What engines write when an account is used up, whatever status they send with it. A limit per
# second or minute is another matter: it passes while one waits.
_USED_UP = re.compile(
    r"credit|run out of searches|QUOTA_LIMITED|per day|daily|monthly|usage limit|plan limit",
    re.IGNORECASE,
)
_ABOUT_THE_KEY = re.compile(r"api[ _-]?key", re.IGNORECASE)
_ABOUT_THE_ACCOUNT = (400, 401, 403, 429)
"""Statuses whose text is looked at for key and account. That of others is not: who finds a query
too long repeats it (422), and a model may have written anything."""
_ABOUT_THE_QUERY = (400, 413, 414, 422)
_HALF_AN_EMOJI = re.compile(rb"\\u[dD][89a-fA-F]")
_PAUSE_SECONDS = 5.0
"""How long to leave an engine alone that still says "too many requests" after all attempts."""
_TAG = re.compile(r"</?(?:b|strong|em|i|mark)>", re.IGNORECASE)


class WebOptions(RemoteSettings):
    """Options of a provider that is asked by HTTP."""

    url: str = Field(pattern="^https?://", description="Base URL of the engine.")
    key_env: str | None = Field(
        None, description="Name of the environment variable that holds the key."
    )
    timeout: float = Field(20.0, gt=0, description="Seconds that one request may take.")
    retries: int = Field(
        3,
        ge=0,
        description="Further attempts after a failed connection, a time-out, HTTP 408, 425, 429 or "
        "5xx, or an answer that cannot be read.",
    )
    retry_wait_maximum: float = Field(
        10.0, ge=0, description="Seconds between attempts at most, whatever Retry-After says."
    )
    max_response_mb: float = Field(8.0, gt=0, description="Largest answer that is read, in MiB.")


@dataclass(frozen=True, slots=True)
class WebRequest:
    """One request.

    Attributes:
        path: Behind the base URL, with its slash.
        method: ``GET`` or ``POST``.
        params: The query of the URL.
        json: The body.
        content: A body of another kind, instead.
        content_type: Its kind.
    """

    path: str
    method: str = "GET"
    params: Mapping[str, str] | None = None
    json: Any = None
    content: bytes | None = None
    content_type: str = "application/json"


class Answer(BaseModel):
    """Base of the forms of answers: what an engine adds is ignored, what it leaves out is not."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def _words(value: Any) -> Any:
    if value is None:
        return ""
    return " ".join(value.split()) if isinstance(value, str) else value


Words = Annotated[str, BeforeValidator(_words)]
"""Text on one line; null is empty."""

Markup = Annotated[
    str,
    BeforeValidator(
        lambda value: html.unescape(_TAG.sub("", value)) if isinstance(value, str) else value
    ),
    BeforeValidator(_words),
]
"""The same of engines that emphasise words with tags and send entities."""

Options = TypeVar("Options", bound=WebOptions)
Found = TypeVar("Found")


class WebEngine(Provider, Generic[Options]):
    """An engine that is asked by HTTP: its options, key, connections and complaints.

    Attributes:
        section: Part of the settings that its options are in.
        options_model: Form of the options.
        options: The options of this one.
        key_header: Header with the key; ``Authorization`` gets a bearer token.
        key_parameter: Parameter with the key instead, for engines that take it nowhere else.
        headers: Further headers.
    """

    section: ClassVar[str] = "providers"
    options_model: ClassVar[type[WebOptions]] = WebOptions
    options: Options
    key_header: str = "Authorization"
    key_parameter: str | None = None
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Check the options; nothing is opened yet.

        Raises:
            SearchNotConfiguredError: One of them is wrong.
        """
        self.options = read_options(  # type: ignore[assignment]
            f"{self.section}.{self.name}", self.options_model, options
        )
        self._service: RemoteService | None = None

    async def ask(self, request: WebRequest, results: Callable[[Reply], Found]) -> Found:
        """Send a request, again after passing trouble.

        Args:
            request: What is sent.
            results: Reads an answer (HTTP 2xx, JSON). It raises ValidationError for another form
                than documented, and RemoteUnavailableError for an engine that failed in passing.

        Raises:
            SearchError: It did not succeed; what the contract says of :meth:`search`.
        """
        service = self._connected()

        def read(reply: Reply) -> Found:
            if reply.status >= 300:
                raise service.refusal(reply)
            document = reply.json()  # Says so if it is none.
            if _HALF_AN_EMOJI.search(reply.body):
                # Engines cut snippets in the middle of one; for pydantic the rest is no JSON.
                text = encodable(json.dumps(document, ensure_ascii=False))
                reply = replace(reply, body=text.encode())
            try:
                return results(reply)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                raise reply.unreadable(
                    f"an answer of another form than documented ({place}: {first['msg']})"
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
        """What is left of the time for which the circuit breaker leaves the server alone."""
        return 0.0 if self._service is None else self._service.circuit.wait

    def preflight(self) -> None:
        """Look whether the key is there."""
        variable = self.options.key_env
        if variable and not os.environ.get(variable, "").strip():
            raise KeyMissingError(
                f"{self.name}: the environment variable {variable} is not set; put the API key "
                f"into it, or name another one in search.{self.section}.{self.name}.key_env",
                variable=variable,
            )

    async def check(self) -> str:
        """Look whether the key is there and the engine's server answers."""
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
        """The service, made when the first search looks for the key."""
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
        """Say in the contract's words what an engine refuses."""
        variable = self.options.key_env or ""
        account = f"the account of the key in ${variable}" if variable else "the account"
        reason = self._without_key(str(error))
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
        reason = self._without_key(str(error))
        if error.status == 429:
            variable = self.options.key_env or ""
            return QuotaExhaustedError(
                f"{self.name}: too many requests"
                f"{f' for the key in ${variable}' if variable else ''}; lower "
                f"search.{self.section}.{self.name}.rate: {reason}",
                variable=variable,
                retry_after=error.retry_after or _PAUSE_SECONDS,
            )
        return SearchUnavailableError(f"{self.name}: {reason}")

    def _without_key(self, text: str) -> str:
        """Some servers repeat the key in their complaint."""
        key = os.environ.get(self.options.key_env or "", "").strip()
        return text.replace(key, "…") if key else text


def _says_used_up(status: int, text: str) -> bool:
    return status in _ABOUT_THE_ACCOUNT and _USED_UP.search(text) is not None


class WebProvider(WebEngine[Options], TextSearchProvider):
    """Answers text searches. A subclass says how the request looks and how its answer is read."""

    @abstractmethod
    def request(self, query: SearchQuery) -> WebRequest:
        """Make the request for ``query``."""

    @abstractmethod
    def results(self, reply: Reply, query: SearchQuery) -> SearchResults:
        """Read the engine's answer (HTTP 2xx).

        Raises:
            ValidationError: It has another form than documented.
            RemoteUnavailableError: It says that the engine failed in passing.
        """

    async def search(self, query: SearchQuery) -> SearchResults:
        """Ask the engine, again after passing trouble."""
        if not query.text.strip():
            raise QueryRefusedError(f"{self.name}: the query is empty")
        found = await self.ask(self.request(query), lambda reply: self.results(reply, query))
        return found.model_copy(update={"results": found.results[: query.count]})


def with_operators(query: SearchQuery) -> str:
    """The text with the operators that web engines have for sites."""
    words = [query.text]
    if query.sites:
        words.append("(" + " OR ".join(f"site:{site}" for site in query.sites) + ")")
    words += [f"-site:{site}" for site in query.excluded_sites]
    return " ".join(words)


def google_dates(query: SearchQuery) -> str:
    """Google's parameter ``tbs`` for a range of days; empty for any time."""
    if query.since is None and query.until is None:
        return ""
    parts = ["cdr:1"]
    if query.since is not None:
        parts.append(f"cd_min:{query.since:%m/%d/%Y}")
    if query.until is not None:
        parts.append(f"cd_max:{query.until:%m/%d/%Y}")
    return ",".join(parts)


def given(**values: Any) -> dict[str, Any]:
    """The values that are not empty."""
    return {name: value for name, value in values.items() if value not in ("", None, (), [])}
