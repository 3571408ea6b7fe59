"""What a search provider is asked and what it says.

A provider asks one engine, once: it caches nothing and keeps to no budget. What stands in front of
it does. It may try again after passing trouble.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from deepeyes_plugins.protocol.content import EncodedImage, encodable

MAXIMUM_RESULTS = 100
"""Most results that can be asked for: what the most generous engines give at a time."""

Filter = Literal["language", "region", "sites", "excluded_sites", "since", "until"]
"""Fields of a query that not every engine has."""

FILTERS: frozenset[Filter] = frozenset(get_args(Filter))

Text = Annotated[
    str, BeforeValidator(lambda value: encodable(value) if isinstance(value, str) else value)
]
"""Text from a model or from the net: lone surrogates become U+FFFD."""


class SearchQuery(BaseModel):
    """One text search. The model writes the text; the rest are settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Text = Field(description="What to search for, as the model wrote it.")
    count: int = Field(10, ge=1, le=MAXIMUM_RESULTS, description="Results at most.")
    language: str = Field("", pattern="^([a-z]{2})?$", description="ISO 639-1, for instance en.")
    region: str = Field("", pattern="^([A-Z]{2})?$", description="ISO 3166-1, for instance US.")
    sites: tuple[str, ...] = Field((), description="Host names: results of these only.")
    excluded_sites: tuple[str, ...] = Field((), description="Host names: no results of these.")
    since: date | None = Field(None, description="Published on that day or later.")
    until: date | None = Field(None, description="Published on that day or earlier.")

    @property
    def filters(self) -> frozenset[Filter]:
        """The filters that are set."""
        return frozenset(name for name in FILTERS if getattr(self, name))


class SearchResult(BaseModel):
    """One web page or passage, as plain text: markup and entities are the provider's to remove."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Text = Field("", description="Title of the page.")
    link: Text = Field("", description="Where it is.")
    snippet: Text = Field("", description="The part that fits the query.")
    date: Text = Field("", description="When it was published, in the engine's own words.")
    score: float | None = Field(
        None,
        allow_inf_nan=False,
        description="How well it fits, where the engine says; more is "
        "better, and comparable within one answer only.",
    )


class SearchResults(BaseModel):
    """The answer to one query."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    results: tuple[SearchResult, ...] = Field((), description="Best first.")
    partial: str = Field("", description="Why results are missing; empty if none are.")
    kept: bool = Field(
        False,
        description="It cost no search: it was known, or is shared with somebody who asked the "
        "same at the same time. For metrics; providers leave it alone.",
    )


@dataclass(frozen=True, slots=True)
class ImageQuery:
    """One search by image.

    Attributes:
        image: What to search for: the question's image, or a crop of it.
        data_id: Stable name of the question in its data set (``Task.id``), for caches that go by
            it; empty where the image is not the question's own.
        count: Results at most.
    """

    image: EncodedImage
    data_id: str = ""
    count: int = 10


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One page that shows such an image.

    Attributes:
        title: Title of the page, plain text.
        thumbnail: The image on it, readable and within the limits of the protocol
            (:func:`~deepeyes_plugins.protocol.content.fit_for_model`); ``None`` if there is none.
        link: Where the page is; empty if it is not known.
    """

    title: str
    thumbnail: EncodedImage | None = None
    link: str = ""


@dataclass(frozen=True, slots=True)
class ImageResults:
    """The answer to one search by image.

    Attributes:
        results: Best first.
        partial: Why results are missing; empty if none are.
        kept: It cost no search, as in :class:`SearchResults`.
    """

    results: tuple[ImageResult, ...] = ()
    partial: str = ""
    kept: bool = False


class SearchError(Exception):
    """A search did not succeed; the message names the provider, the reason and what to do."""


class QueryRefusedError(SearchError):
    """This query cannot be answered (empty, too long, broken image): the model's affair, not ours.

    Another query may succeed.
    """


class NotRecordedError(SearchError):
    """A replay has no answer to this query, and asks nobody else."""


class SearchUnavailableError(SearchError):
    """The provider does not work at the moment: another attempt, or another provider, may."""


class SearchNotConfiguredError(SearchError):
    """A setting or a key is missing or wrong; no attempt will succeed before that is mended.

    Attributes:
        variable: Name of the environment variable that holds the key; empty if it is no key.
    """

    def __init__(self, message: str, *, variable: str = "") -> None:
        """Say what is wrong and how to mend it."""
        super().__init__(message)
        self.variable = variable


class KeyMissingError(SearchNotConfiguredError):
    """The environment variable with the key is not set; nothing was sent."""


class KeyRefusedError(SearchNotConfiguredError):
    """The provider does not accept the key."""


class QuotaExhaustedError(SearchError):
    """The account, the plan or our own budget is used up.

    Attributes:
        variable: Name of the environment variable with the account's key; empty for our own budget.
        retry_after: Seconds after which it is worth trying again; 0 if nobody says.
    """

    def __init__(self, message: str, *, variable: str = "", retry_after: float = 0) -> None:
        """Say which quota it is."""
        super().__init__(message)
        self.variable = variable
        self.retry_after = retry_after


class Provider(ABC):
    """What text and image providers have in common. Nothing is opened before the first search.

    Attributes:
        name: What settings call it.
        cacheable: Whether its answers may be kept for later. An index that is at hand, fast and may
            change says no.
        patient: Whether a search may wait for a server that is left alone since it keeps failing;
            no longer where somebody else can be asked.
    """

    name: str
    cacheable: bool = True
    patient: bool = True

    @property
    def pause(self) -> float:
        """Seconds for which it is left alone, since it kept failing just now; 0: it is asked.

        While there is another one to ask, queries do not wait for it.
        """
        return 0.0

    def preflight(self) -> None:  # noqa: B027 - not every provider needs something
        """Look whether it has what it needs here, key or file, before a run begins.

        Nothing is sent; it may block for as long as it takes to open a file.

        Raises:
            SearchNotConfiguredError: It lacks something; the message names it.
        """

    async def check(self) -> str:
        """Look whether it could answer, without using up quota; for ``deepeyes doctor``.

        Returns:
            What was found, for people.

        Raises:
            SearchError: It could not.
        """
        return "nothing to check"

    async def aclose(self) -> None:  # noqa: B027 - most providers hold nothing
        """Close every connection; idempotent."""


class TextSearchProvider(Provider):
    """Answers text searches; shared by all trajectories of an event loop.

    Attributes:
        filters: Those that it honours; nobody hands it another one.
    """

    filters: frozenset[Filter] = frozenset()

    @abstractmethod
    async def search(self, query: SearchQuery) -> SearchResults:
        """Answer one query; finding nothing is an answer.

        Raises:
            QueryRefusedError: It cannot be answered, whoever asks.
            SearchNotConfiguredError: A setting or key is missing or wrong.
            QuotaExhaustedError: The account is used up.
            SearchUnavailableError: It does not work at the moment.
        """


class ImageSearchProvider(Provider):
    """Answers searches by image; shared by all trajectories of an event loop."""

    @abstractmethod
    async def search(self, query: ImageQuery) -> ImageResults:
        """Answer one query; finding nothing is an answer.

        Raises:
            QueryRefusedError: The image cannot be read.
            SearchNotConfiguredError: A setting or key is missing or wrong.
            QuotaExhaustedError: The account is used up.
            SearchUnavailableError: It does not work at the moment.
        """


TextProviderFactory = Callable[[Mapping[str, Any]], TextSearchProvider]
"""Makes a provider of its options in agent.yaml.

Raises:
    SearchNotConfiguredError: An option is wrong; see
        :func:`~deepeyes_plugins.search.settings.read_options`.
"""

ImageProviderFactory = Callable[[Mapping[str, Any]], ImageSearchProvider]
"""The same for search by image."""
