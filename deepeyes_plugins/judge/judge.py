"""The judge behind OpenAI-compatible servers."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
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
from deepeyes_plugins.remote.retry import attempts
from deepeyes_plugins.remote.statistics import CallSnapshot, percentile

logger = logging.getLogger(__name__)

_OWN_FAULT_STATUSES = frozenset({400, 413, 422})
"""Statuses that are about this one request, not about the server, its key or its model."""
_REMEMBERED_LATENCIES = 2048
_EXCERPT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class JudgeSnapshot:
    """What a judge did so far, for metrics to read.

    Attributes:
        comparisons: Comparisons that were asked for and have ended.
        cached: Those that cost no call.
        calls: Requests to servers that were answered, failed or refused.
        unreadable: Replies without a clear verdict.
        unavailable: Comparisons that ended without a verdict.
        p50: Half of the verdicts that cost a call took less, in seconds; of the last 2,048.
        p95: 95 % took less.
        p99: 99 % took less.
        endpoints: The calls to each server, by URL.
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
    """A server that judges, with its share of the questions."""

    def __init__(self, endpoint: JudgeEndpoint, settings: JudgeSettings) -> None:
        """Hold the settings; no connection is opened yet."""
        self.weight = endpoint.weight
        self.chat = ChatEndpoint(
            endpoint.url,
            settings,
            model=endpoint.model,
            key_env=endpoint.api_key_env,
            model_hint="judge.endpoints[].model in agent.yaml",
        )


class LLMJudge:
    """Asks language models; shared by all trajectories of an event loop.

    Use it as an async context manager, or call :meth:`aclose`.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        """Hold ``settings`` and read the prompts; no connection is opened yet.

        Raises:
            ValueError: There is no endpoint.
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
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED_LATENCIES)
        self._last_answer = float("-inf")

    async def __aenter__(self) -> Self:
        """Return the judge itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._cache.aclose()
        for endpoint in self.endpoints:
            await endpoint.chat.aclose()

    async def compare(self, prompt: PromptName, comparison: Comparison) -> Verdict:
        """Judge one answer.

        Equal comparisons, up to white space around their texts, cost one call.

        Raises:
            JudgeOutageError: No server answered anybody for ``outage_patience`` seconds.
            JudgeUnavailableError: No verdict could be had: none that can be read in
                the prompt's number of tries, or none at all.
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
        """Judge one answer by one server, whatever is known or would fail over.

        Raises:
            JudgeUnavailableError: It gave no verdict.
        """
        return await self._ask(prompt, comparison, (endpoint,))

    def snapshot(self) -> JudgeSnapshot:
        """Return what happened so far."""
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
        """What else a verdict depends on: the models, and how they are asked."""
        models = []
        for endpoint in self.endpoints:
            try:
                models.append(await endpoint.chat.model(retries=0))
            except RemoteError:  # It is down; the question itself will show that.
                models.append(endpoint.chat.url)
        asked = self._settings.prompt(prompt)
        return [
            prompt,
            self._instructions[prompt],
            asked.model_dump_json(),
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
        said = ""
        for _ in range(settings.tries):
            completion = await self._complete(request)
            if completion.finish_reason != "length":
                correct = read_verdict(prompt, completion.text)
                if correct is not None:
                    seconds = time.monotonic() - started
                    return Verdict(correct, seconds=seconds, calls=request.sent)
            self._counts["unreadable"] += 1
            said = _ending(completion)
            logger.info("a judge's reply has no clear verdict: %s", said)
        raise JudgeUnavailableError(
            f"the judge gave no clear verdict in {settings.tries} tries; its last reply: {said}"
        )

    async def _complete(self, request: _Request) -> Completion:
        """Get a reply from any of the endpoints, as patiently as the settings say."""
        settings = self._settings
        failing_since: float | None = None

        def is_outage() -> bool:
            """Nobody was answered since this request began to fail: it is not this question."""
            waits = settings.outage == "wait"
            return waits and failing_since is not None and self._last_answer < failing_since

        def give_up(state: tenacity.RetryCallState) -> bool:
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
            async for attempt in attempts(settings, give_up):
                with attempt:
                    completion = await self._round(request)
                    self._last_answer = time.monotonic()
                    return completion
        except (ContextLengthError, RemoteRefusedError) as error:
            raise JudgeUnavailableError(f"the judge refuses: {error}") from error
        except RemoteUnavailableError as error:
            if is_outage():
                raise JudgeOutageError(
                    f"no judge has answered for {settings.outage_patience:g} s "
                    f"(judge.outage_patience): {error}"
                ) from error
            raise JudgeUnavailableError(f"the judge is unavailable: {error}") from error
        raise AssertionError("unreachable: the loop returns or raises")

    async def _round(self, request: _Request) -> Completion:
        """Try every endpoint once, in an order drawn by weight, those known to be down last.

        Raises:
            CircuitOpenError: All failed before and are left alone; nothing was sent.
            RemoteUnavailableError: All failed; a server that refuses its key or model may be put
                right and counts as failed.
            RemoteRefusedError: One refuses this request for what it is.
            ContextLengthError: It is too long.
        """
        errors: list[RemoteError] = []
        for endpoint in _drawn(request.endpoints):
            request.sent += endpoint.chat.circuit.wait == 0
            try:
                return await endpoint.chat.complete(request.messages, request.fields, retries=0)
            except RemoteUnavailableError as error:
                errors.append(error)
            except RemoteRefusedError as error:
                if error.status in _OWN_FAULT_STATUSES:
                    raise
                errors.append(error)
        left_alone = all(isinstance(error, CircuitOpenError) for error in errors)
        raise (CircuitOpenError if left_alone else RemoteUnavailableError)(
            "; ".join(map(str, errors)),
            retry_after=min(getattr(error, "retry_after", 0.0) for error in errors),
        )


@dataclass(slots=True)
class _Request:
    """What is sent, to whom, and how often it was."""

    messages: Sequence[bytes]
    fields: Mapping[str, Any]
    endpoints: Sequence[Endpoint]
    sent: int = 0


def _drawn(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Order at random, so that the first is drawn by weight, and so on.

    The k-th power of a uniform number with k = 1 / weight does that (Efraimidis and Spirakis 2006).
    """
    return sorted(
        endpoints,
        key=lambda one: (one.chat.circuit.wait > 0, -(random.random() ** (1 / one.weight))),
    )


def _ending(completion: Completion) -> str:
    text = " ".join(completion.text.split())
    cut = " (cut at max_tokens)" if completion.finish_reason == "length" else ""
    return repr(text[-_EXCERPT_CHARACTERS:]) + cut


def open_judge(settings: JudgeSettings) -> LLMJudge | None:
    """Make the judge of the settings; ``None`` where none is set up, and rules decide.

    Raises:
        ValueError: ``LLM_AS_A_JUDGE_BASE`` holds no URL.
        OSError: A prompt cannot be read.
    """
    return LLMJudge(settings) if settings.servers() else None
