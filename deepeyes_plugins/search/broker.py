"""Search broker: response cache, request coalescing, quotas and provider fallback.

Equal queries that are under way at the same time share one request. A cached response is returned
at once; otherwise the first provider that is available and within its budget is asked. Rate limits,
retries and circuit breakers are the providers' own (:mod:`deepeyes_plugins.remote`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar
from uuid import uuid4

from deepeyes_plugins.remote.circuit import Circuit
from deepeyes_plugins.remote.retry import Backoff
from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.remote.single_flight import SingleFlight
from deepeyes_plugins.remote.statistics import CallStatistics
from deepeyes_plugins.search.cache import ResponseStore
from deepeyes_plugins.search.contracts import (
    NotRecordedError,
    QueryRefusedError,
    QuotaExhaustedError,
    SearchError,
    SearchNotConfiguredError,
    SearchUnavailableError,
)
from deepeyes_plugins.search.settings import Budget, CacheSettings

logger = logging.getLogger(__name__)

_DAY = 86_400.0
_RUN_SECONDS = 90 * _DAY
"""Lifetime in the store of a run's search count, after the run's last search."""
_SUSPENSION = Backoff(60.0, 60.0)
"""Suspension of a provider without key or quota, unless it names a time itself."""
_IRRELEVANT_OPTIONS = frozenset({*RemoteSettings.model_fields, "key_env"})
"""Options that do not affect responses: cached responses stay valid when one of them changes."""


class Results(Protocol):
    """Response to a search of either kind."""

    @property
    def results(self) -> Sequence[object]:
        """Results, best first."""

    @property
    def partial(self) -> str:
        """Why results are missing; empty if none are."""


Query = TypeVar("Query")
Response = TypeVar("Response", bound=Results)
Query_contra = TypeVar("Query_contra", contravariant=True)
Response_co = TypeVar("Response_co", covariant=True)


class BrokeredProvider(Protocol[Query_contra, Response_co]):
    """Interface of text and image providers that the broker uses."""

    name: str
    cacheable: bool
    patient: bool

    @property
    def pause(self) -> float:
        """Seconds until the circuit breaker lets a request through."""

    async def search(self, query: Query_contra) -> Response_co:
        """Search."""

    def preflight(self) -> None:
        """Check that the API key or file is available."""

    async def check(self) -> str:
        """Check that searches would succeed."""

    async def aclose(self) -> None:
        """Close every connection."""


@dataclass(frozen=True)
class SearchType(Generic[Query, Response]):
    """How the broker handles queries and responses of one kind of search.

    Attributes:
        kind: ``text`` or ``image``.
        key: Returns a key that only equal queries share.
        dump: Serialises a response.
        load: Reads a serialised response; raises :class:`ValueError` for anything else.
        as_cached: Returns a response, marked as one that cost no search.
        fall_back_if_empty: Ask the next provider if one finds nothing.
    """

    kind: str
    key: Callable[[Query], str]
    dump: Callable[[Response], bytes]
    load: Callable[[bytes], Response]
    as_cached: Callable[[Response], Response]
    fall_back_if_empty: bool = False


@dataclass
class Source(Generic[Query, Response]):
    """A provider with its budget, statistics and availability.

    Attributes:
        provider: The provider.
        identity: What responses depend on besides the query: the provider's name and options.
        budget: Maximum number of searches.
        calls: Outcomes and latencies of its searches.
        suspension: Open for some time after an error about key or quota, which searches then get.
    """

    provider: BrokeredProvider[Query, Response]
    identity: str
    budget: Budget = field(default_factory=Budget)
    calls: CallStatistics = field(default_factory=CallStatistics)

    def __post_init__(self) -> None:
        self.suspension = Circuit(1, _SUSPENSION)

    @property
    def unavailable_reason(self) -> str:
        """Why the provider is suspended or its circuit is open; empty if it is available."""
        if self.suspension.wait:
            return str(self.suspension.cause)
        pause = self.provider.pause
        if pause > 0:
            return f"{self.provider.name}: too many failures, circuit open for {pause:.1f} s"
        return ""


class Broker(Generic[Query, Response]):
    """Answers queries from the cache or from the first available provider.

    Attributes:
        counts: Queries by outcome: ``asked``, ``kept`` (cached), ``kept_refusal`` (a cached
            refusal), ``shared`` (coalesced), ``refused``, ``failed``, ``not_recorded``.
        sources: The providers in order.
    """

    def __init__(
        self,
        search_type: SearchType[Query, Response],
        sources: Sequence[Source[Query, Response]],
        store: ResponseStore,
        cache: CacheSettings,
        run: str = "",
    ) -> None:
        """Create the broker; nothing is opened yet.

        Args:
            search_type: Text or image search.
            sources: Providers in order, at least one. They are closed with the broker.
            store: Cached responses and counts; it is not closed.
            cache: Lifetimes of cached responses.
            run: Name of the experiment; by default each broker is a run of its own.
        """
        self.counts: Counter[str] = Counter()
        self.sources = list(sources)
        for source in self.sources[:-1]:
            source.provider.patient = False
        self._type = search_type
        self._store = store
        self._cache = cache
        self._run = run or uuid4().hex
        self._flights: SingleFlight[str, Response] = SingleFlight()

    async def search(self, query: Query) -> Response:
        """Answer a query; cancelling it does not affect equal queries under way.

        Raises:
            SearchError: As the providers' contract says; of several providers, the reasons of all.
        """
        key = self._type.key(query)
        shared = key in self._flights
        self.counts["shared"] += shared
        response = await self._flights.run(key, lambda: self._first_response(key, query))
        return self._type.as_cached(response) if shared else response

    async def aclose(self) -> None:
        """Cancel requests and close the providers."""
        await self._flights.aclose()
        for source in self.sources:
            await source.provider.aclose()

    async def _first_response(self, key: str, query: Query) -> Response:
        errors: list[SearchError] = []
        empty: Response | None = None
        for source in self.sources:
            try:
                response = await self._cached_response(source, key, query)
            except NotRecordedError:
                self.counts["not_recorded"] += 1
                raise
            except SearchError as error:
                errors.append(error)
                continue
            if response.results or not self._type.fall_back_if_empty:
                return response
            empty = response
        if empty is not None and all(isinstance(one, QueryRefusedError) for one in errors):
            return empty  # A provider that failed might have found something.
        failure = _merged(errors)
        self.counts["refused" if isinstance(failure, QueryRefusedError) else "failed"] += 1
        raise failure

    async def _cached_response(
        self, source: Source[Query, Response], key: str, query: Query
    ) -> Response:
        """Return the cached response of a provider, or ask it and cache the response."""
        cache_key = hashlib.sha256(
            f"{self._type.kind}\0{source.identity}\0{key}".encode()
        ).hexdigest()
        cached = await self._store.get(cache_key) if source.provider.cacheable else None
        if cached is not None and cached.startswith(b"!"):
            self.counts["kept_refusal"] += 1
            raise QueryRefusedError(cached[1:].decode("utf-8", "replace"))
        if cached is not None:
            try:
                response = self._type.load(cached[1:])
            except ValueError as error:
                # Written by another version.
                logger.info("a cached response cannot be read, the search is repeated: %s", error)
            else:
                self.counts["kept"] += 1
                return self._type.as_cached(response)
        try:
            response = await self._request(source, query)
        except QueryRefusedError as error:
            value = b"!" + str(error).encode()
            await self._store_response(source, cache_key, value, self._cache.negative_ttl)
            raise
        if not response.partial:
            seconds = self._cache.ttl if response.results else self._cache.negative_ttl
            value = b"=" + self._type.dump(response)
            await self._store_response(source, cache_key, value, seconds)
        return response

    async def _store_response(
        self, source: Source[Query, Response], cache_key: str, value: bytes, seconds: float
    ) -> None:
        if source.provider.cacheable:
            await self._store.put(cache_key, value, seconds)

    async def _request(self, source: Source[Query, Response], query: Query) -> Response:
        if source.suspension.wait and source.suspension.cause is not None:
            source.calls.hold_back()
            # Raised many times, the error must not accumulate tracebacks.
            raise source.suspension.cause.with_traceback(None)
        if source is not self.sources[-1] and (reason := source.unavailable_reason):
            source.calls.hold_back()
            raise SearchUnavailableError(reason)
        await self._spend(source)
        self.counts["asked"] += 1
        started = time.monotonic()
        try:
            response = await source.provider.search(query)
        except (SearchNotConfiguredError, QuotaExhaustedError) as error:
            source.calls.record("refused", time.monotonic() - started)
            source.suspension.open(error, getattr(error, "retry_after", 0) or None)
            self._log_fallback(error)
            raise
        except QueryRefusedError:
            source.calls.record("refused", time.monotonic() - started)
            raise
        except SearchError as error:
            source.calls.record("unavailable", time.monotonic() - started)
            self._log_fallback(error)
            raise
        source.calls.record("answered", time.monotonic() - started)
        source.suspension.close()
        return response

    def _log_fallback(self, error: SearchError) -> None:
        """Log an error that the response of a fallback would hide."""
        if len(self.sources) > 1:
            logger.warning("%s search falls back to the next provider: %s", self._type.kind, error)

    async def _spend(self, source: Source[Query, Response]) -> None:
        """Count one search against the budgets.

        Raises:
            QuotaExhaustedError: A budget is used up.
        """
        budget, name = source.budget, source.provider.name
        now = datetime.now(UTC)
        tomorrow = _DAY - (now.hour * 3600 + now.minute * 60 + now.second)
        spent: list[tuple[str, float]] = []
        for option, limit, counter, lifetime, retry_after in (
            ("per_day", budget.per_day, f"day:{now:%Y-%m-%d}:{name}", _DAY, tomorrow),
            ("per_run", budget.per_run, f"run:{self._run}:{name}", _RUN_SECONDS, 0.0),
        ):
            if limit is None:
                continue
            spent.append((counter, lifetime))
            if await self._store.add(counter, 1, lifetime) > limit:
                for spent_counter, spent_lifetime in spent:
                    await self._store.add(spent_counter, -1, spent_lifetime)
                source.calls.hold_back()
                raise QuotaExhaustedError(
                    f"{name}: the budget of {limit} searches is used up "
                    f"(search.budgets.{name}.{option})",
                    retry_after=retry_after,
                )


def _merged(errors: Sequence[SearchError]) -> SearchError:
    """Return one error for those of several providers."""
    if len(errors) == 1:
        return errors[0]
    text = "all providers failed: " + "; ".join(map(str, errors))
    if all(isinstance(error, QueryRefusedError) for error in errors):
        return QueryRefusedError(text)
    return SearchUnavailableError(text)


def identity(name: str, options: Mapping[str, Any]) -> str:
    """Return what a provider's responses depend on besides the query."""
    relevant = {key: value for key, value in options.items() if key not in _IRRELEVANT_OPTIONS}
    return f"{name} {json.dumps(relevant, sort_keys=True, default=str)}"
