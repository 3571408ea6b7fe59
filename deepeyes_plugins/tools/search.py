"""Text search tool and the base of all search tools."""

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
    """Whether the search tools are enabled for the task of a trajectory.

    Attributes:
        is_on: Set by :meth:`open`.
    """

    def __init__(self, settings: SearchSettings) -> None:
        """Use the rules ``search.policy``."""
        self._rules = settings.policy
        self.is_on = True

    def open(self, task: Task) -> None:
        """Look up the task's data source."""
        self.is_on = search_is_on(task.data_source, self._rules)
        if not self.is_on:
            logger.debug("search is off for the data source %r (search.policy)", task.data_source)


def preflight(tool: str, search: Search, kind: Kind, data_source: str) -> None:
    """Check whether a search tool is configured.

    Default providers are not checked: if they are not configured, the model is told so.

    Args:
        tool: Name of the tool.
        search: The search.
        kind: Kind of search.
        data_source: Data source of the tasks; without search, nothing is checked.

    Raises:
        SettingsError: A setting, key or file of a provider is missing; the message names it.
    """
    settings = search.settings
    if not settings.chooses(kind) or not search_is_on(data_source, settings.policy):
        return
    try:
        search.preflight(kind)
    except SearchNotConfiguredError as error:
        raise SettingsError(f"the tool {tool} cannot work: {error}") from error


def refusal(reason: str) -> Observation:
    """Return the observation of an invalid call, which the model can correct."""
    return Observation(tool_response([f"Error: {defuse(reason)}"]), error=reason)


def switched_off(tool: str) -> Observation:
    """Return the observation of a search tool that is switched off."""
    return refusal(f"the tool {tool} is switched off for this task; answer without it")


def not_configured(tool: str, error: SearchNotConfiguredError) -> Observation:
    """Return the observation of a search tool without settings or key."""
    logger.warning("tool %s is not configured: %s", tool, error)
    parts = refusal(f"the tool {tool} is not configured; answer without it").parts
    return Observation(parts, error=str(error), infrastructure=True)


class ArgumentError(ValueError):
    """An invalid call; the message is for the model."""


class BaseSearchTool(Tool, Generic[Query, Found]):
    """Base of search tools: search policy, timeout and error handling."""

    kind: ClassVar[Kind]
    refused: ClassVar[str]
    """Text for the model if a provider refuses the query."""

    def __init__(self, resources: Resources) -> None:
        self._search = resources.search
        self._settings = resources.settings.search
        self._policy = SearchPolicy(self._settings)

    def preflight(self, data_source: str) -> None:
        """Check key, index or file of the providers, if search is on."""
        preflight(self.name, self._search, self.kind, data_source)

    async def open(self, task: Task) -> None:
        """Look up whether search is on for the task."""
        self._policy.open(task)

    @abstractmethod
    async def query(self, arguments: Mapping[str, Any]) -> Query:
        """Return the query of a call.

        Raises:
            ArgumentError: An argument is invalid, or no searches are left.
            ImageError: The image to search for cannot be read.
        """

    @abstractmethod
    async def find(self, query: Query) -> Found:
        """Search.

        Raises:
            SearchError: No provider responds.
        """

    @abstractmethod
    async def observation(self, arguments: Mapping[str, Any], found: Found) -> Observation:
        """Return the observation of the results."""

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Search.

        Raises:
            InfrastructureError: No provider responds.
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
        """Return the query in ``arguments["query"]``."""
        text = arguments.get("query")
        if not isinstance(text, str) or not text.strip():
            raise ArgumentError("the argument 'query' must be a text that is not empty")
        return self._search.query(text)

    async def find(self, query: SearchQuery) -> SearchResults:
        """Search with the text providers."""
        return await self._search.text.search(query)

    async def observation(self, arguments: Mapping[str, Any], found: SearchResults) -> Observation:
        """Return titles, links, dates and snippets within their limits."""
        parts = text_search_observation(arguments["query"], shortened(found, self._settings))
        return Observation(parts, figures=answer_figures(found))


def answer_figures(found: SearchResults | ImageResults) -> dict[str, float]:
    """Return the metrics of a response: whether it was cached, and its results."""
    return {
        "cache_hits": float(found.kept),
        "found": float(bool(found.results)),
        "results": float(len(found.results)),
    }


def shortened(found: SearchResults, settings: SearchSettings) -> Sequence[SearchResult]:
    """Return the results that fit the limits, with shortened texts.

    The first result is always included, shortened to fit.
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
    """Shorten a text to at most ``characters``, with an ellipsis."""
    if len(text) <= characters:
        return text
    return text[: max(0, characters - len(_CUT))].rstrip() + _CUT if characters else ""
