"""Search contracts: queries, results, errors and the base classes of providers.

A provider wraps one engine. It may retry transient failures; caching, quotas and fallback are the
broker's (:mod:`deepeyes_plugins.search.broker`).
"""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import date
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
)
from pydantic.dataclasses import dataclass

from deepeyes_plugins.protocol.content import EncodedImage, encodable

MAXIMUM_RESULTS = 100
"""Largest result count of a query, which is the largest that any engine supports."""

Filter = Literal["language", "region", "sites", "excluded_sites", "since", "until"]
"""Fields of a query that not every engine supports."""

FILTERS: frozenset[Filter] = frozenset(get_args(Filter))

Text = Annotated[
    str, BeforeValidator(lambda value: encodable(value) if isinstance(value, str) else value)
]
"""Text from a model or the web: lone surrogates are replaced by U+FFFD."""


def _decoded(value: object) -> EncodedImage:
    if isinstance(value, EncodedImage):
        return value
    if not isinstance(value, str):
        raise ValueError("expected an image as base64 text")
    try:
        return EncodedImage(base64.b64decode(value, validate=True))
    except binascii.Error as error:
        raise ValueError(f"invalid base64: {error}") from error


Base64Image = Annotated[
    EncodedImage,
    PlainValidator(_decoded),
    PlainSerializer(lambda image: base64.b64encode(image.data).decode("ascii"), return_type=str),
]
"""An image file that is base64 in JSON."""

_STRICT = ConfigDict(extra="forbid")


class SearchQuery(BaseModel):
    """One text search. The model writes the text; the other fields come from the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Text = Field(description="Search text, as the model wrote it.")
    count: int = Field(10, ge=1, le=MAXIMUM_RESULTS, description="Maximum number of results.")
    language: str = Field("", pattern="^([a-z]{2})?$", description="ISO 639-1, for instance en.")
    region: str = Field("", pattern="^([A-Z]{2})?$", description="ISO 3166-1, for instance US.")
    sites: tuple[str, ...] = Field((), description="Host names to which results are restricted.")
    excluded_sites: tuple[str, ...] = Field((), description="Host names to exclude.")
    since: date | None = Field(None, description="Earliest date of publication.")
    until: date | None = Field(None, description="Latest date of publication.")

    @property
    def filters(self) -> frozenset[Filter]:
        """Filters that are set."""
        return frozenset(name for name in FILTERS if getattr(self, name))


class SearchResult(BaseModel):
    """One web page or passage as plain text; the provider removes markup and entities."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Text = Field("", description="Title of the page.")
    link: Text = Field("", description="URL of the page.")
    snippet: Text = Field("", description="Excerpt that matches the query.")
    date: Text = Field("", description="Date of publication as the engine writes it.")
    score: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Relevance, if the engine returns one: higher is better, and comparable "
        "within one response only.",
    )


class SearchResults(BaseModel):
    """Response to a text search."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    results: tuple[SearchResult, ...] = Field((), description="Results, best first.")
    partial: str = Field("", description="Why results are missing; empty if none are.")
    kept: bool = Field(
        False,
        description="The response was cached or coalesced with an equal query under way, and cost "
        "no search. Set by the broker, for metrics.",
    )


@dataclass(frozen=True, slots=True, config=_STRICT)
class ImageQuery:
    """One search by image.

    Attributes:
        image: The question's image, or a crop of it.
        data_id: Stable name of the question in its data set (``Task.id``), by which caches find
            responses; empty if the image is not the question's own.
        count: Maximum number of results.
    """

    image: Base64Image
    data_id: str = ""
    count: Annotated[int, Field(ge=1, le=MAXIMUM_RESULTS)] = 10


@dataclass(frozen=True, slots=True, config=_STRICT)
class ImageResult:
    """One page that shows the image.

    Attributes:
        title: Title of the page, plain text.
        thumbnail: The image on the page, readable and within the limits of the protocol
            (:func:`~deepeyes_plugins.protocol.content.fit_for_model`); ``None`` if there is none.
        link: URL of the page; empty if unknown.
    """

    title: Text = ""
    thumbnail: Base64Image | None = None
    link: Text = ""


@dataclass(frozen=True, slots=True, config=_STRICT)
class ImageResults:
    """Response to a search by image.

    Attributes:
        results: Results, best first.
        partial: Why results are missing; empty if none are.
        kept: The response cost no search, as in :class:`SearchResults`.
    """

    results: tuple[ImageResult, ...] = ()
    partial: str = ""
    kept: bool = False


class SearchError(Exception):
    """A search failed; the message names the provider, the reason and what to do."""


class QueryRefusedError(SearchError):
    """The query is invalid (empty, too long, broken image): a model error.

    Another query may succeed.
    """


class NotRecordedError(SearchError):
    """The replayed recording has no response to this query."""


class SearchUnavailableError(SearchError):
    """The provider failed; a retry or another provider may succeed."""


class SearchNotConfiguredError(SearchError):
    """A setting or API key is missing or wrong; retries fail until it is corrected.

    Attributes:
        variable: Environment variable of the API key; empty if the error is not about a key.
    """

    def __init__(self, message: str, *, variable: str = "") -> None:
        super().__init__(message)
        self.variable = variable


class KeyMissingError(SearchNotConfiguredError):
    """The environment variable of the API key is not set; nothing was sent."""


class KeyRefusedError(SearchNotConfiguredError):
    """The provider rejects the API key."""


class QuotaExhaustedError(SearchError):
    """The account, the plan or the budget of the settings is used up.

    Attributes:
        variable: Environment variable of the account's API key; empty for a budget of the settings.
        retry_after: Seconds to wait before a retry; 0 if unknown.
    """

    def __init__(self, message: str, *, variable: str = "", retry_after: float = 0) -> None:
        super().__init__(message)
        self.variable = variable
        self.retry_after = retry_after


class Provider(ABC):
    """Base of text and image providers. Nothing is opened before the first search.

    Attributes:
        name: Name in the settings.
        cacheable: Whether responses may be cached. False for local sources, which are fast and may
            change.
        patient: Whether a search waits while the circuit breaker is open. The broker sets it to
            false if there is a fallback.
    """

    name: str
    cacheable: bool = True
    patient: bool = True

    @property
    def pause(self) -> float:
        """Seconds until the circuit breaker lets a request through; 0 if it is closed.

        Until then queries go to the fallback, if there is one.
        """
        return 0.0

    def preflight(self) -> None:  # noqa: B027 - not every provider needs something
        """Check before a run that the API key or file is available.

        Nothing is sent. The call may block while a file is opened.

        Raises:
            SearchNotConfiguredError: Something is missing; the message names it.
        """

    async def check(self) -> str:
        """Check that searches would succeed, without using quota; for ``deepeyes doctor``.

        Returns:
            A description of the provider's state.

        Raises:
            SearchError: Searches would fail.
        """
        return "nothing to check"

    async def aclose(self) -> None:  # noqa: B027 - most providers open nothing
        """Close every connection; idempotent."""


class TextSearchProvider(Provider):
    """Base of text-search providers; all trajectories of an event loop share one.

    Attributes:
        filters: Supported filters; the broker rejects queries that have others.
    """

    filters: frozenset[Filter] = frozenset()

    @abstractmethod
    async def search(self, query: SearchQuery) -> SearchResults:
        """Search; an empty result list is a valid response.

        Raises:
            QueryRefusedError: The query is invalid.
            SearchNotConfiguredError: A setting or key is missing or wrong.
            QuotaExhaustedError: The account is used up.
            SearchUnavailableError: The engine failed.
        """


class ImageSearchProvider(Provider):
    """Base of image-search providers; all trajectories of an event loop share one."""

    @abstractmethod
    async def search(self, query: ImageQuery) -> ImageResults:
        """Search; an empty result list is a valid response.

        Raises:
            QueryRefusedError: The image cannot be read.
            SearchNotConfiguredError: A setting or key is missing or wrong.
            QuotaExhaustedError: The account is used up.
            SearchUnavailableError: The engine failed.
        """


TextProviderFactory = Callable[[Mapping[str, Any]], TextSearchProvider]
"""Makes a provider from its options in agent.yaml.

Raises:
    SearchNotConfiguredError: An option is wrong; see
        :func:`~deepeyes_plugins.search.settings.read_options`.
"""

ImageProviderFactory = Callable[[Mapping[str, Any]], ImageSearchProvider]
"""Makes an image-search provider from its options in agent.yaml."""
