"""What stands between queries and providers: kept answers, one request for equal queries, budgets.

A query goes this way: whoever asks the same at the moment waits for one answer; an answer that is
kept is given; else the first provider that works and has budget left is asked. Rate limits, retries
and circuit breakers are the providers' own (:mod:`deepeyes_plugins.remote`).
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

from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.remote.single_flight import SingleFlight
from deepeyes_plugins.remote.statistics import CallStatistics
from deepeyes_plugins.search.cache import AnswerStore
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
"""How long the count of a run is remembered after its last search."""
_LEFT_ALONE = 60.0
"""Seconds for which a provider without key or quota is not asked, where it does not say itself."""
_NOT_TELLING = frozenset({*RemoteSettings.model_fields, "key_env"})
"""Options that no answer depends on: whoever lowers a rate keeps the answers that were paid for."""

Query = TypeVar("Query")
Answer = TypeVar("Answer")
Query_contra = TypeVar("Query_contra", contravariant=True)
Answer_co = TypeVar("Answer_co", covariant=True)


class Asked(Protocol[Query_contra, Answer_co]):
    """The part of a provider that a broker calls."""

    name: str
    cacheable: bool
    patient: bool

    @property
    def pause(self) -> float:
        """Seconds for which it is left alone, since it keeps failing."""

    async def search(self, query: Query_contra) -> Answer_co:
        """Answer one query."""

    def preflight(self) -> None:
        """Look whether it has what it needs."""

    async def check(self) -> str:
        """Look whether it could answer."""

    async def aclose(self) -> None:
        """Close every connection."""


@dataclass(frozen=True)
class Form(Generic[Query, Answer]):
    """What a broker has to know of one kind of search.

    Attributes:
        kind: ``text`` or ``image``.
        identify: Tells equal queries from different ones.
        dump: Turns an answer into bytes.
        load: The same the other way round; ValueError where they are no answer.
        is_empty: Whether an answer has no results.
        is_partial: Whether results are missing; such an answer is not kept.
        as_kept: The answer, with the remark that it cost no search.
        past_empty: Ask the next provider where one finds nothing.
    """

    kind: str
    identify: Callable[[Query], str]
    dump: Callable[[Answer], bytes]
    load: Callable[[bytes], Answer]
    is_empty: Callable[[Answer], bool]
    is_partial: Callable[[Answer], bool]
    as_kept: Callable[[Answer], Answer]
    past_empty: bool = False


@dataclass
class Source(Generic[Query, Answer]):
    """A provider as a broker sees it.

    Attributes:
        provider: Who is asked.
        identity: What its answers depend on besides the query: its name and options.
        budget: How often it may be asked.
        calls: What came of asking it.
    """

    provider: Asked[Query, Answer]
    identity: str
    budget: Budget = field(default_factory=Budget)
    calls: CallStatistics = field(default_factory=CallStatistics)
    _refusal: SearchError | None = None
    _left_alone_until: float = 0.0

    @property
    def refusal(self) -> SearchError | None:
        """Why it is left alone for want of a key or of quota; ``None`` if it is not."""
        return self._refusal if time.monotonic() < self._left_alone_until else None

    @property
    def trouble(self) -> str:
        """Why it is left alone, for whatever reason; empty if it is not."""
        if self.refusal is not None:
            return str(self.refusal)
        pause = self.provider.pause
        if pause > 0:
            return f"{self.provider.name}: it keeps failing and is left alone for {pause:.1f} s"
        return ""

    def leave_alone(self, refusal: SearchError | None, seconds: float = 0.0) -> None:
        """Do not ask it for some time; ``None``: do again."""
        self._refusal, self._left_alone_until = refusal, time.monotonic() + seconds


class Broker(Generic[Query, Answer]):
    """Answers queries from what is kept, or from the first of several providers that can.

    Attributes:
        counts: How queries ended so far: ``asked``, ``kept``, ``kept_refusal``, ``shared``,
            ``refused``, ``failed``, ``not_recorded``.
        sources: The providers in order.
    """

    def __init__(
        self,
        form: Form[Query, Answer],
        sources: Sequence[Source[Query, Answer]],
        store: AnswerStore,
        cache: CacheSettings,
        run: str = "",
    ) -> None:
        """Hold everything; nothing is opened yet.

        Args:
            form: The kind of search.
            sources: Providers in order, at least one. They are closed with the broker.
            store: Kept answers and counts; it is not closed.
            cache: How long answers are kept.
            run: Name of the experiment; by default the broker's life is a run.
        """
        self.counts: Counter[str] = Counter()
        self.sources = list(sources)
        for source in self.sources[:-1]:
            source.provider.patient = False
        self._form = form
        self._store = store
        self._cache = cache
        self._run = run or uuid4().hex
        self._flights: SingleFlight[str, Answer] = SingleFlight()

    async def search(self, query: Query) -> Answer:
        """Answer a query; whoever is cancelled leaves others who ask the same undisturbed.

        Raises:
            SearchError: As the providers' contract says; with several providers, what each of them
                said.
        """
        key = self._form.identify(query)
        shared = key in self._flights
        self.counts["shared"] += shared
        answer = await self._flights.run(key, lambda: self._answer(key, query))
        return self._form.as_kept(answer) if shared else answer

    async def aclose(self) -> None:
        """Stop asking and close the providers."""
        await self._flights.aclose()
        for source in self.sources:
            await source.provider.aclose()

    async def _answer(self, key: str, query: Query) -> Answer:
        refusals: list[SearchError] = []
        empty: Answer | None = None
        for source in self.sources:
            try:
                answer = await self._from(source, key, query)
            except NotRecordedError:
                self.counts["not_recorded"] += 1
                raise
            except SearchError as error:
                refusals.append(error)
                continue
            if not (self._form.past_empty and self._form.is_empty(answer)):
                return answer
            empty = answer
        if empty is not None and all(isinstance(one, QueryRefusedError) for one in refusals):
            return empty  # Else nobody knows whether there is nothing to be found.
        failure = _together(refusals)
        self.counts["refused" if isinstance(failure, QueryRefusedError) else "failed"] += 1
        raise failure

    async def _from(self, source: Source[Query, Answer], key: str, query: Query) -> Answer:
        """What one provider says, or has said before."""
        place = hashlib.sha256(f"{self._form.kind}\0{source.identity}\0{key}".encode()).hexdigest()
        kept = await self._store.get(place) if source.provider.cacheable else None
        if kept is not None and kept.startswith(b"!"):
            self.counts["kept_refusal"] += 1
            raise QueryRefusedError(kept[1:].decode("utf-8", "replace"))
        if kept is not None:
            try:
                answer = self._form.load(kept[1:])
            except ValueError as error:
                # Another version has written it.
                logger.info("a kept answer cannot be read and is asked for again: %s", error)
            else:
                self.counts["kept"] += 1
                return self._form.as_kept(answer)
        try:
            answer = await self._ask(source, query)
        except QueryRefusedError as error:
            await self._keep(source, place, b"!" + str(error).encode(), self._cache.negative_ttl)
            raise
        if not self._form.is_partial(answer):
            empty = self._form.is_empty(answer)
            seconds = self._cache.negative_ttl if empty else self._cache.ttl
            await self._keep(source, place, b"=" + self._form.dump(answer), seconds)
        return answer

    async def _keep(
        self, source: Source[Query, Answer], place: str, value: bytes, seconds: float
    ) -> None:
        if source.provider.cacheable:
            await self._store.put(place, value, seconds)

    async def _ask(self, source: Source[Query, Answer], query: Query) -> Answer:
        if (refusal := source.refusal) is not None:
            source.calls.hold_back()
            # The same error many times over: it is not to collect where it was raised.
            raise refusal.with_traceback(None)
        if source is not self.sources[-1] and (trouble := source.trouble):
            source.calls.hold_back()
            raise SearchUnavailableError(trouble)
        await self._spend(source)
        self.counts["asked"] += 1
        started = time.monotonic()
        try:
            answer = await source.provider.search(query)
        except (SearchNotConfiguredError, QuotaExhaustedError) as error:
            source.calls.record("refused", time.monotonic() - started)
            pause = getattr(error, "retry_after", 0) or _LEFT_ALONE
            source.leave_alone(error, pause)
            self._tell(error)
            raise
        except QueryRefusedError:
            source.calls.record("refused", time.monotonic() - started)
            raise
        except SearchError as error:
            source.calls.record("unavailable", time.monotonic() - started)
            self._tell(error)
            raise
        source.calls.record("answered", time.monotonic() - started)
        source.leave_alone(None)
        return answer

    def _tell(self, error: SearchError) -> None:
        """Say why a provider does not answer, where the next one's answer would hide it."""
        if len(self.sources) > 1:
            logger.warning("%s search goes on to the next provider: %s", self._form.kind, error)

    async def _spend(self, source: Source[Query, Answer]) -> None:
        """Count one search against the budgets.

        Raises:
            QuotaExhaustedError: One of them is used up.
        """
        budget, name = source.budget, source.provider.name
        now = datetime.now(UTC)
        tomorrow = _DAY - (now.hour * 3600 + now.minute * 60 + now.second)
        spent: list[tuple[str, float]] = []
        for what, limit, counter, seconds, wait in (
            ("per_day", budget.per_day, f"day:{now:%Y-%m-%d}:{name}", _DAY, tomorrow),
            ("per_run", budget.per_run, f"run:{self._run}:{name}", _RUN_SECONDS, 0.0),
        ):
            if limit is None:
                continue
            spent.append((counter, seconds))
            if await self._store.add(counter, 1, seconds) > limit:
                for one, kept in spent:
                    await self._store.add(one, -1, kept)
                source.calls.hold_back()
                raise QuotaExhaustedError(
                    f"{name}: our own budget of {limit} searches is used up "
                    f"(search.budgets.{name}.{what})",
                    retry_after=wait,
                )


def _together(errors: Sequence[SearchError]) -> SearchError:
    """One error for those of several providers."""
    if len(errors) == 1:
        return errors[0]
    text = "no provider answers: " + "; ".join(map(str, errors))
    if all(isinstance(error, QueryRefusedError) for error in errors):
        return QueryRefusedError(text)
    return SearchUnavailableError(text)


def identity(name: str, options: Mapping[str, Any]) -> str:
    """What a provider's answers depend on besides the query: not on how patiently it is asked."""
    telling = {key: value for key, value in options.items() if key not in _NOT_TELLING}
    return f"{name} {json.dumps(telling, sort_keys=True, default=str)}"
