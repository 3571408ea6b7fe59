"""Preflight check of the judge before a training run: reachability and known verdicts."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace

from deepeyes_plugins.judge.contracts import Comparison, JudgeUnavailableError, PromptName
from deepeyes_plugins.judge.judge import Endpoint, LLMJudge
from deepeyes_plugins.judge.settings import JudgeSettings
from deepeyes_plugins.remote.errors import RemoteError, RemoteUnavailableError

logger = logging.getLogger(__name__)

_KNOWN: tuple[tuple[PromptName, Comparison, bool], ...] = (
    ("answer", Comparison("What colour is the parked car?", "red", "The car is red."), True),
    ("answer", Comparison("What colour is the parked car?", "red", "The car is green."), False),
    ("equivalence", Comparison("Compute 1/2 + 1/4.", "3/4", "0.75"), True),
    ("equivalence", Comparison("Compute 1/2 + 1/4.", "3/4", "2/3"), False),
)


@dataclass(frozen=True, slots=True)
class EndpointReport:
    """Result of the check of one endpoint.

    Attributes:
        url: Base URL.
        model: Name of the model; empty if unknown.
        seconds: Latency of the slowest verdict.
        reachable: Whether the server answers.
        problem: What is wrong; empty if nothing is.
    """

    url: str
    model: str = ""
    seconds: float = 0.0
    reachable: bool = True
    problem: str = ""


async def preflight(settings: JudgeSettings) -> list[EndpointReport]:
    """Check every endpoint; log a warning for unreachable ones if another one works.

    Returns:
        One report for each endpoint; empty if none is configured.

    Raises:
        JudgeUnavailableError: No endpoint can be reached, or one that can be has a problem.
    """
    reports = await examine(settings)
    wrong = [report for report in reports if report.problem and report.reachable]
    unreachable = [report for report in reports if not report.reachable]
    if wrong or (unreachable and len(unreachable) == len(reports)):
        reasons = "\n".join(f"  {report.url}: {report.problem}" for report in wrong or unreachable)
        raise JudgeUnavailableError(
            f"the judge is not fit for training (settings: judge in agent.yaml):\n{reasons}"
        )
    for report in unreachable:
        logger.warning("the judge at %s cannot be reached: %s", report.url, report.problem)
    return reports


async def examine(settings: JudgeSettings) -> list[EndpointReport]:
    """Check every endpoint concurrently.

    Returns:
        One report for each endpoint; empty if none is configured.
    """
    if not settings.servers():
        return []
    # Neither wait for an outage nor use cached verdicts.
    immediate = settings.model_copy(update={"outage": "mark", "retries": 1, "cache_size": 0})
    async with LLMJudge(immediate) as judge:
        return await asyncio.gather(*(_examine(judge, one) for one in judge.endpoints))


async def _examine(judge: LLMJudge, endpoint: Endpoint) -> EndpointReport:
    report = EndpointReport(endpoint.chat.url)
    try:
        listed = await endpoint.chat.models(retries=1)
        model = await endpoint.chat.model(retries=1)
    except RemoteError as error:
        reachable = not isinstance(error, RemoteUnavailableError)
        return replace(report, reachable=reachable, problem=str(error))
    report = replace(report, model=model)
    if listed is not None and model not in listed:
        names = ", ".join(listed) or "none"
        return replace(report, problem=f"it has no model {model!r}; it has: {names}")
    for prompt, comparison, expected in _KNOWN:
        started = time.monotonic()
        try:
            verdict = await judge.ask(prompt, comparison, endpoint)
        except JudgeUnavailableError as error:
            return replace(report, problem=str(error))
        report = replace(report, seconds=max(report.seconds, time.monotonic() - started))
        if verdict.correct is not expected:
            judged = "right" if verdict.correct else "wrong"
            return replace(
                report,
                problem=f"{model} calls the answer {comparison.answer!r} {judged}, where the "
                f"reference is {comparison.ground_truth!r}: use a stronger model, or check the "
                f"instructions {prompt}.md",
            )
    return report
