"""LLM judge on OpenAI-compatible servers: load balancing, retries, verdict cache, outages."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, get_args

import tenacity

from deepeyes_plugins.judge.cache import VerdictCache, cache_key
from deepeyes_plugins.judge.contracts import (
    Comparison,
    JudgeOutageError,
    JudgeUnavailableError,
    PromptName,
    Verdict,
)
from deepeyes_plugins.judge.settings import JudgeEndpoint, JudgeSettings
from deepeyes_plugins.judge.verdicts import read_verdict
from deepeyes_plugins.judge.wording import load_instructions, render
from deepeyes_plugins.remote.chat import ChatEndpoint, Completion, ContextLengthError, text_message
from deepeyes_plugins.remote.errors import (
    CircuitOpenError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnavailableError,
)
from deepeyes_plugins.remote.statistics import CallSnapshot, percentile

logger = logging.getLogger(__name__)

_REQUEST_STATUSES = frozenset({400, 413, 422})
"""Statuses about this one request, not about the server, its key or its model."""
_LATENCY_WINDOW = 2048
_EXCERPT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class JudgeSnapshot:
    """Metrics of a judge.

    Attributes:
        comparisons: Comparisons that have ended.
        cached: Comparisons without a request.
        calls: Requests to servers that have ended.
        unreadable: Replies without a clear verdict.
        unavailable: Comparisons without a verdict.
        p50: Median latency in seconds of the last 2,048 verdicts that were not cached.
        p95: 95th percentile.
        p99: 99th percentile.
        endpoints: Requests to each server, by URL.
    """

    comparisons: int
    cached: int
    calls: int
    unreadable: int
    unavailable: int
    p50: float
    p95: float
    p99: float
    endpoints: Mapping[str, CallSnapshot] = field(default_factory=dict)


class Endpoint:
    """A judge server and its weight in load balancing."""

    def __init__(self, endpoint: JudgeEndpoint, settings: JudgeSettings) -> None:
        self.weight = endpoint.weight
        self.chat = ChatEndpoint(
            endpoint.url,
            settings,
            model=endpoint.model,
            key_env=endpoint.api_key_env,
            model_hint="judge.endpoints[].model in agent.yaml",
        )


class LLMJudge:
    """Judge by language models; shared by all trajectories of an event loop.

    Use it as an async context manager, or call :meth:`aclose`.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        """Read the prompts; no connection is opened yet.

        Raises:
            ValueError: The settings name no endpoint.
            OSError: A prompt cannot be read.
        """
        servers = settings.servers()
        if not servers:
            raise ValueError("the judge has no endpoint: set judge.endpoints in agent.yaml")
        self._settings = settings
        self.endpoints = tuple(Endpoint(server, settings) for server in servers)
        self._instructions = {
            name: load_instructions(name, settings.prompts) for name in get_args(PromptName)
        }
        self._cache = VerdictCache(settings.cache_size, settings.cache_folder, settings.timeout)
        self._counts: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=_LATENCY_WINDOW)
        self._last_answer = float("-inf")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close every connection."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._cache.aclose()
        for endpoint in self.endpoints:
            await endpoint.chat.aclose()

    async def compare(self, prompt: PromptName, comparison: Comparison) -> Verdict:
        """Judge one answer.

        Comparisons that are equal up to surrounding white space share one request.

        Raises:
            JudgeOutageError: No server has answered any request for ``outage_patience`` seconds.
            JudgeUnavailableError: No readable verdict was returned in the prompt's number of tries,
                or no server could be reached.
        """
        started = time.monotonic()
        texts = [
            text.strip()
            for text in (comparison.question, comparison.ground_truth, comparison.answer)
        ]
        stripped = Comparison(*texts)
        key = cache_key(*await self._identity(prompt), *texts)
        try:
            verdict = await self._cache.verdict(
                key, lambda: self._ask(prompt, stripped, self.endpoints)
            )
        except JudgeUnavailableError:
            self._counts["unavailable"] += 1
            raise
        finally:
            self._counts["comparisons"] += 1
        if verdict.cached:
            self._counts["cached"] += 1
        else:
            self._latencies.append(time.monotonic() - started)
        return verdict

    async def ask(self, prompt: PromptName, comparison: Comparison, endpoint: Endpoint) -> Verdict:
        """Judge one answer on one server, without cache and failover.

        Raises:
            JudgeUnavailableError: The server returned no verdict.
        """
        return await self._ask(prompt, comparison, (endpoint,))

    def snapshot(self) -> JudgeSnapshot:
        """Return the metrics so far."""
        ordered = sorted(self._latencies) or [0.0]
        endpoints = {
            endpoint.chat.url: endpoint.chat.statistics.snapshot() for endpoint in self.endpoints
        }
        return JudgeSnapshot(
            comparisons=self._counts["comparisons"],
            cached=self._counts["cached"],
            calls=sum(calls.requests for calls in endpoints.values()),
            unreadable=self._counts["unreadable"],
            unavailable=self._counts["unavailable"],
            p50=percentile(ordered, 0.50),
            p95=percentile(ordered, 0.95),
            p99=percentile(ordered, 0.99),
            endpoints=endpoints,
        )

    async def _identity(self, prompt: PromptName) -> list[str]:
        """Return what a verdict depends on besides the texts: models, prompt and sampling."""
        models = []
        for endpoint in self.endpoints:
            try:
                models.append(await endpoint.chat.model(retries=0))
            except RemoteError:  # The request itself will report that the server is down.
                models.append(endpoint.chat.url)
        return [
            prompt,
            self._instructions[prompt],
            self._settings.prompt(prompt).model_dump_json(),
            repr(sorted(self._settings.extra_body.items())),
            "\n".join(sorted(set(models))),
        ]

    async def _ask(
        self, prompt: PromptName, comparison: Comparison, endpoints: Sequence[Endpoint]
    ) -> Verdict:
        settings = self._settings.prompt(prompt)
        request = _Request(
            messages=(
                text_message("system", self._instructions[prompt]),
                text_message("user", render(comparison, self._settings.longest_text)),
            ),
            fields={
                "temperature": settings.temperature,
                "max_tokens": settings.max_tokens,
                **self._settings.extra_body,
            },
            endpoints=endpoints,
        )
        started = time.monotonic()
        last_reply = ""
        for _ in range(settings.tries):
            completion = await self._complete(request)
            if completion.finish_reason != "length":
                correct = read_verdict(prompt, completion.text)
                if correct is not None:
                    seconds = time.monotonic() - started
                    return Verdict(correct, seconds=seconds, calls=request.sent)
            self._counts["unreadable"] += 1
            last_reply = _ending(completion)
            logger.info("the judge's reply has no clear verdict: %s", last_reply)
        raise JudgeUnavailableError(
            f"the judge gave no clear verdict in {settings.tries} tries; last reply: {last_reply}"
        )

    async def _complete(self, request: _Request) -> Completion:
        """Get a reply from any endpoint, with retries, waiting for an outage to end."""
        settings = self._settings
        failing_since: float | None = None

        def is_outage() -> bool:
            """Return whether no request was answered since this one began to fail."""
            waits = settings.outage == "wait"
            return waits and failing_since is not None and self._last_answer < failing_since

        def stop(state: tenacity.RetryCallState) -> bool:
            nonlocal failing_since
            now = time.monotonic()
            if failing_since is None:
                failing_since = now
            if is_outage():
                return now - failing_since >= settings.outage_patience
            error = state.outcome.exception() if state.outcome is not None else None
            known_to_be_down = settings.outage == "mark" and isinstance(error, CircuitOpenError)
            return known_to_be_down or state.attempt_number > settings.retries

        try:
            async for attempt in settings.backoff.attempts(stop):
                with attempt:
                    completion = await self._round(request)
                    self._last_answer = time.monotonic()
                    return completion
        except (ContextLengthError, RemoteRefusedError) as error:
            raise JudgeUnavailableError(f"the judge refuses the request: {error}") from error
        except RemoteUnavailableError as error:
            if is_outage():
                raise JudgeOutageError(
                    f"no judge has answered for {settings.outage_patience:g} s "
                    f"(judge.outage_patience): {error}"
                ) from error
            raise JudgeUnavailableError(f"the judge is unavailable: {error}") from error
        raise AssertionError("unreachable: the loop returns or raises")

    async def _round(self, request: _Request) -> Completion:
        """Try every endpoint once, in random order by weight, those with an open circuit last.

        Raises:
            CircuitOpenError: The circuits of all endpoints are open; nothing was sent.
            RemoteUnavailableError: All endpoints failed, or refused their key or model, which may
                be corrected meanwhile.
            RemoteRefusedError: An endpoint refuses this request.
            ContextLengthError: The request is too long.
        """
        errors: list[RemoteError] = []
        for endpoint in _drawn(request.endpoints):
            request.sent += endpoint.chat.circuit.wait == 0
            try:
                return await endpoint.chat.complete(request.messages, request.fields, retries=0)
            except RemoteUnavailableError as error:
                errors.append(error)
            except RemoteRefusedError as error:
                if error.status in _REQUEST_STATUSES:
                    raise
                errors.append(error)
        all_open = all(isinstance(error, CircuitOpenError) for error in errors)
        raise (CircuitOpenError if all_open else RemoteUnavailableError)(
            "; ".join(map(str, errors)),
            retry_after=min(getattr(error, "retry_after", 0.0) for error in errors),
        )


@dataclass(slots=True)
class _Request:
    """A chat request, its endpoints, and how often it was sent."""

    messages: Sequence[bytes]
    fields: Mapping[str, Any]
    endpoints: Sequence[Endpoint]
    sent: int = 0


def _drawn(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Return a weighted random permutation (Efraimidis and Spirakis 2006), open circuits last."""
    return sorted(
        endpoints,
        key=lambda one: (one.chat.circuit.wait > 0, -(random.random() ** (1 / one.weight))),
    )


def _ending(completion: Completion) -> str:
    text = " ".join(completion.text.split())
    cut = " (cut at max_tokens)" if completion.finish_reason == "length" else ""
    return repr(text[-_EXCERPT_CHARACTERS:]) + cut


def open_judge(settings: JudgeSettings) -> LLMJudge | None:
    """Make the judge of the settings; ``None`` if no endpoint is configured.

    Raises:
        ValueError: ``LLM_AS_A_JUDGE_BASE`` is not a URL.
        OSError: A prompt cannot be read.
    """
    return LLMJudge(settings) if settings.servers() else None
