"""Is there a judge, and does it judge? Asked before a training run takes its GPUs."""

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
    """What one server of the judge is like.

    Attributes:
        url: Its base URL.
        model: The model that is asked; empty if it is not known.
        seconds: How long the slowest verdict took.
        reachable: It answers.
        problem: What is wrong, for people; empty if nothing is.
    """

    url: str
    model: str = ""
    seconds: float = 0.0
    reachable: bool = True
    problem: str = ""


async def preflight(settings: JudgeSettings) -> list[EndpointReport]:
    """Ask every endpoint for verdicts that are known.

    A server that cannot be reached is only warned about while another one works: it may come back.

    Returns:
        One report for each endpoint; none if no judge is set up.

    Raises:
        JudgeUnavailableError: No server works, or one of them works wrongly.
    """
    reports = await examine(settings)
    wrong = [report for report in reports if report.problem and report.reachable]
    away = [report for report in reports if not report.reachable]
    if wrong or (away and len(away) == len(reports)):
        reasons = "\n".join(f"  {report.url}: {report.problem}" for report in wrong or away)
        raise JudgeUnavailableError(
            f"the judge is not fit for training (settings: judge in agent.yaml):\n{reasons}"
        )
    for report in away:
        logger.warning("the judge at %s cannot be reached: %s", report.url, report.problem)
    return reports


async def examine(settings: JudgeSettings) -> list[EndpointReport]:
    """Look at every endpoint, at the same time.

    Returns:
        One report for each endpoint; none if no judge is set up.
    """
    if not settings.servers():
        return []
    # Who asks wants to know it now, and from the server itself.
    impatient = settings.model_copy(update={"outage": "mark", "retries": 1, "cache_size": 0})
    async with LLMJudge(impatient) as judge:
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
        has = ", ".join(listed) or "none"
        return replace(report, problem=f"it has no model {model!r}; it has: {has}")
    for prompt, comparison, expected in _KNOWN:
        started = time.monotonic()
        try:
            verdict = await judge.ask(prompt, comparison, endpoint)
        except JudgeUnavailableError as error:
            return replace(report, problem=str(error))
        report = replace(report, seconds=max(report.seconds, time.monotonic() - started))
        if verdict.correct is not expected:
            said = "right" if verdict.correct else "wrong"
            return replace(
                report,
                problem=f"{model} calls the answer {comparison.answer!r} {said}, where the "
                f"reference is {comparison.ground_truth!r}: use a stronger model, or look at "
                f"the instructions {prompt}.md",
            )
    return report
