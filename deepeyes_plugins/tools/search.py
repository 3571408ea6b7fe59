"""Text search as the model calls it, and what all search tools have in common."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.protocol.content import ImageError
from deepeyes_plugins.protocol.observations import (
    SearchResult,
    defuse,
    text_search_observation,
    tool_response,
)
from deepeyes_plugins.rollout.contracts import InfrastructureError, Observation, Task, Tool
from deepeyes_plugins.search.availability import search_is_on
from deepeyes_plugins.search.client import Search
from deepeyes_plugins.search.contracts import (
    ImageResults,
    QueryRefusedError,
    SearchError,
    SearchNotConfiguredError,
    SearchQuery,
    SearchResults,
)
from deepeyes_plugins.search.settings import Kind, SearchSettings
from deepeyes_plugins.tools.resources import Resources

logger = logging.getLogger(__name__)

Query = TypeVar("Query")
Found = TypeVar("Found", SearchResults, ImageResults)

_LONGEST_LINK = 2000
_CUT = "…"


class SearchPolicy:
    """Whether the search tools work for the task of a trajectory.

    Attributes:
        is_on: Set by :meth:`open`.
    """

    def __init__(self, settings: SearchSettings) -> None:
        """Follow the rules of ``settings``."""
        self._rules = settings.policy
        self.is_on = True

    def open(self, task: Task) -> None:
        """Look up the task's data source."""
        self.is_on = search_is_on(task.data_source, self._rules)
        if not self.is_on:
            logger.debug("search is off for the data source %r (search.policy)", task.data_source)


def preflight(tool: str, search: Search, kind: Kind, data_source: str) -> None:
    """Look whether a search tool has what it needs.

    Who answers where the settings choose nobody may lack it: then the model is told so.

    Args:
        tool: Its name.
        search: What it searches with.
        kind: What it searches for.
        data_source: Whose tasks are to be played; where search is off, nothing is needed.

    Raises:
        SettingsError: A provider lacks something; the message names it.
    """
    settings = search.settings
    if not settings.chooses(kind) or not search_is_on(data_source, settings.policy):
        return
    try:
        search.preflight(kind)
    except SearchNotConfiguredError as error:
        raise SettingsError(f"the tool {tool} cannot work: {error}") from error


def refusal(reason: str) -> Observation:
    """The observation of a call that cannot be carried out as it is; the model may mend it."""
    return Observation(tool_response([f"Error: {defuse(reason)}"]), error=reason)


def switched_off(tool: str) -> Observation:
    """The observation of a search tool that the policy switches off."""
    return refusal(f"the tool {tool} is switched off for this task; answer without it")


def not_configured(tool: str, error: SearchNotConfiguredError) -> Observation:
    """The observation where settings or a key are missing: trying again is of no use."""
    logger.warning("tool %s is not configured: %s", tool, error)
    parts = refusal(f"the tool {tool} is not configured; answer without it").parts
    return Observation(parts, error=str(error), infrastructure=True)


class ArgumentError(ValueError):
    """A call that cannot be carried out as it is; the message is for the model."""


class BaseSearchTool(Tool, Generic[Query, Found]):
    """What every search does around its query: policy, limits in time, and what goes wrong."""

    kind: ClassVar[Kind]
    refused: ClassVar[str]
    """What the model reads where a provider refuses the query."""

    def __init__(self, resources: Resources) -> None:
        """Search with what ``resources`` has."""
        self._search = resources.search
        self._settings = resources.settings.search
        self._policy = SearchPolicy(self._settings)

    def preflight(self, data_source: str) -> None:
        """Look for key, index or file of the providers, where search is on."""
        preflight(self.name, self._search, self.kind, data_source)

    async def open(self, task: Task) -> None:
        """Look whether search is on for the task."""
        self._policy.open(task)

    @abstractmethod
    async def query(self, arguments: Mapping[str, Any]) -> Query:
        """Return what is searched for.

        Raises:
            ArgumentError: The call does not say it, or there is no search left.
            ImageError: The image to search for cannot be read.
        """

    @abstractmethod
    async def find(self, query: Query) -> Found:
        """Search.

        Raises:
            SearchError: No provider answers.
        """

    @abstractmethod
    async def observation(self, arguments: Mapping[str, Any], found: Found) -> Observation:
        """Return what the model reads of the results."""

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Search for what ``arguments`` say.

        Raises:
            InfrastructureError: No provider answers.
        """
        if not self._policy.is_on:
            return switched_off(self.name)
        timeout = self._search.settings.timeout
        try:
            query = await self.query(arguments)
            async with asyncio.timeout(timeout):
                found = await self.find(query)
        except ArgumentError as error:
            return refusal(str(error))
        except (QueryRefusedError, ImageError) as error:
            logger.info("a query of %s is refused: %s", self.name, error)
            return Observation(refusal(self.refused).parts, error=str(error))
        except SearchNotConfiguredError as error:
            return not_configured(self.name, error)
        except SearchError as error:
            raise InfrastructureError(str(error)) from error
        except TimeoutError as error:
            raise InfrastructureError(f"no answer within {timeout:g} s") from error
        if found.partial:
            if not found.results:
                raise InfrastructureError(found.partial)
            logger.info("results are missing: %s", found.partial)
        return await self.observation(arguments, found)


class SearchTool(BaseSearchTool[SearchQuery, SearchResults]):
    """Text search."""

    name = "search"
    kind = "text"
    refused = "the query is refused; a shorter one may work"
    schema: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "What to search for."}},
        "required": ["query"],
    }

    async def query(self, arguments: Mapping[str, Any]) -> SearchQuery:
        """Take ``arguments["query"]``."""
        text = arguments.get("query")
        if not isinstance(text, str) or not text.strip():
            raise ArgumentError("the argument 'query' must be a string that is not empty")
        return self._search.query(text)

    async def find(self, query: SearchQuery) -> SearchResults:
        """Ask the text providers."""
        return await self._search.text.search(query)

    async def observation(self, arguments: Mapping[str, Any], found: SearchResults) -> Observation:
        """Return titles, links, dates and snippets within their limits."""
        parts = text_search_observation(arguments["query"], shortened(found, self._settings))
        return Observation(parts, figures=answer_figures(found))


def answer_figures(found: SearchResults | ImageResults) -> dict[str, float]:
    """What metrics tell of an answer: whether it cost a search, and what it brought."""
    return {
        "cache_hits": float(found.kept),
        "found": float(bool(found.results)),
        "results": float(len(found.results)),
    }


def shortened(found: SearchResults, settings: SearchSettings) -> Sequence[SearchResult]:
    """What the model reads of the results: as many as fit, each within its limits.

    The first result is always there, cut to what fits.
    """
    kept: list[SearchResult] = []
    room = settings.total_characters
    for result in found.results:
        title = cut(result.title, settings.title_characters)
        link = result.link[:_LONGEST_LINK]
        snippet = cut(result.snippet, settings.snippet_characters)
        date = cut(result.date, settings.title_characters)
        spent = len(title) + len(link) + len(date)
        if not kept:
            snippet = cut(snippet, max(0, room - spent))
        if kept and spent + len(snippet) > room:
            break
        room -= spent + len(snippet)
        kept.append(SearchResult(title=title, link=link, snippet=snippet, date=date))
    return kept


def cut(text: str, characters: int) -> str:
    """The text, or its beginning with an ellipsis, in at most so many characters."""
    if len(text) <= characters:
        return text
    return text[: max(0, characters - len(_CUT))].rstrip() + _CUT if characters else ""
