"""Scoring of predictions: by rules where they are certain, else by the judge of agent.yaml.

A prediction without a verdict is not scored; it never counts as wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.judge.contracts import Comparison, JudgeUnavailableError
from deepeyes_plugins.judge.judge import LLMJudge
from deepeyes_plugins.judge.settings import BASE_VARIABLE, JudgeEndpoint, JudgeSettings
from deepeyes_plugins.remote.errors import RemoteError
from deepeyes_plugins.settings import load_settings
from eval_plugins.vlmevalkit.constants import NO_VERDICT, RULES_ONLY

CACHE_FOLDER = "verdicts"
"""Folder of the verdict cache within a model's results; ``judge.cache_folder`` overrides it."""

_KEY_VARIABLE = "DEEPEYES_EVAL_JUDGE_KEY"
_CHAT_PATH = "/chat/completions"
_RUN = re.compile(r"T\d{8}[-_]")
"""Pattern of VLMEvalKit's run folders."""

ScoredBy = Literal["rule", "judge", "failed", "no verdict"]
T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """A prediction to be scored.

    Attributes:
        comparison: Question, reference and prediction, as the judge gets them.
        sure: Verdict of the rules; ``None`` if they are not certain.
        failed: The inference failed, so there is no prediction.
    """

    comparison: Comparison
    sure: bool | None
    failed: bool = False


@dataclass(frozen=True)
class Score:
    """Score of one prediction.

    Attributes:
        value: 1.0 for right, 0.0 for wrong, ``None`` for not scored.
        scored_by: What decided, or why there is no score.
        log: Why there is no verdict.
    """

    value: float | None
    scored_by: ScoredBy
    log: str = ""


@dataclass(frozen=True)
class Scoring:
    """How a dataset was scored: the content of ``…_scoring.json``.

    Attributes:
        scoring: ``upstream`` for the dataset's own scoring, ``published`` with the authors'
            fallback to a judge.
        judge: The judge's model; ``None`` for rules alone.
        judge_calls: Comparisons sent to the judge, including those with a cached verdict.
        judge_failures: Comparisons without a verdict.
        fallback_used: Samples that the fallback decided.
    """

    scoring: Literal["upstream", "published"]
    judge: str | None = None
    judge_calls: int = 0
    judge_failures: int = 0
    fallback_used: int = 0

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def judge_for(
    arguments: Mapping[str, Any], results: Path, config: Path | None = None
) -> JudgeSettings | None:
    """Return the judge of agent.yaml, overridden by VLMEvalKit's ``--judge`` options.

    Args:
        arguments: Keywords of a dataset's ``evaluate``: ``model``, ``api_base``.
        results: File with the predictions; verdicts are cached beside it.
        config: agent.yaml; by default what ``DEEPEYES_AGENT_CONFIG`` names.

    Returns:
        The settings; ``None`` for rules alone (``--judge exact_matching``).

    Raises:
        SettingsError: No judge is configured, or its settings are wrong.
    """
    model, base = arguments.get("model"), arguments.get("api_base")
    if model == RULES_ONLY:
        return None
    settings = load_settings(config).judge
    try:
        endpoints = settings.servers()
        if base:
            url = str(base).removesuffix(_CHAT_PATH)
            endpoints = (JudgeEndpoint(url=url, model=model),)
        elif model:
            endpoints = tuple(one.model_copy(update={"model": model}) for one in endpoints)
    except (ValidationError, ValueError) as error:
        raise SettingsError(f"the judge: {error}") from error
    if not endpoints:
        raise SettingsError(
            "no judge is configured: set its server in agent.yaml (judge.endpoints), in "
            f"{BASE_VARIABLE} or by --judge-base-url. --judge {RULES_ONLY} scores by rules alone"
        )
    if arguments.get("key"):
        endpoints = tuple(
            one.model_copy(update={"api_key_env": _KEY_VARIABLE}) for one in endpoints
        )
    return settings.model_copy(
        update={
            "endpoints": endpoints,
            # The next evaluation retries samples without a verdict.
            "outage": "mark",
            "cache_folder": settings.cache_folder or _model_folder(results) / CACHE_FOLDER,
        }
    )


def check_command_line() -> None:
    """Fail before inference if the evaluation will have no judge.

    VLMEvalKit passes its judge options to a dataset only after inference, so they are read from
    the command line.

    Raises:
        SettingsError: No judge is configured, and the mode is not ``infer``.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for option in ("--judge", "--judge-base-url", "--mode"):
        parser.add_argument(option)
    try:
        given, _ = parser.parse_known_args(sys.argv[1:])
    except argparse.ArgumentError:
        return  # VLMEvalKit reports the error.
    if given.mode != "infer":
        judge_for({"model": given.judge, "api_base": given.judge_base_url}, Path("results"))


def score_samples(
    samples: Sequence[Sample],
    arguments: Mapping[str, Any],
    results: Path,
    config: Path | None = None,
) -> tuple[list[Score], Scoring]:
    """Score predictions.

    Args:
        samples: What to score.
        arguments: Keywords of a dataset's ``evaluate``: ``model``, ``api_base``, ``key``,
            ``nproc``.
        results: File with the predictions.
        config: agent.yaml; by default what ``DEEPEYES_AGENT_CONFIG`` names.

    Returns:
        A score per sample, and a summary whose ``scoring`` is ``upstream``.

    Raises:
        SettingsError: No judge is configured, or its settings are wrong.
    """
    settings = judge_for(arguments, results, config)
    if settings is None:
        return [_by_rules(sample) for sample in samples], Scoring("upstream")
    key = str(arguments.get("key") or "")
    concurrency = int(arguments.get("nproc") or 4)
    return _run(lambda: _score(samples, settings, key, concurrency))


def _by_rules(sample: Sample) -> Score:
    if sample.failed:
        return Score(None, "failed")
    return Score(float(sample.sure is True), "rule")


async def _score(
    samples: Sequence[Sample], settings: JudgeSettings, key: str, concurrency: int
) -> tuple[list[Score], Scoring]:
    free = asyncio.Semaphore(concurrency)

    async def one(sample: Sample) -> Score:
        if sample.failed or sample.sure is not None:
            return _by_rules(sample)
        async with free:
            try:
                verdict = await judge.compare("answer", sample.comparison)
            except JudgeUnavailableError as error:
                return Score(None, "no verdict", f"{NO_VERDICT}{error}")
        return Score(float(verdict.correct), "judge")

    async with _open(settings, key) as judge:
        scores = await asyncio.gather(*map(one, samples))
        model = await _model(judge)
    failures = sum(score.scored_by == "no verdict" for score in scores)
    judged = sum(score.scored_by == "judge" for score in scores)
    return scores, Scoring("upstream", model, judged + failures, failures)


def _open(settings: JudgeSettings, key: str) -> LLMJudge:
    """Create the judge; a command-line key is in the environment only during the call."""
    if not key:
        return LLMJudge(settings)
    os.environ[_KEY_VARIABLE] = key
    try:
        return LLMJudge(settings)
    finally:
        del os.environ[_KEY_VARIABLE]


async def _model(judge: LLMJudge) -> str:
    names = []
    for endpoint in judge.endpoints:
        try:
            names.append(await endpoint.chat.model(retries=0))
        except RemoteError:
            names.append(endpoint.chat.url)
    return ", ".join(dict.fromkeys(names))


def as_published(scoring: Scoring, scores: Sequence[Score]) -> Scoring:
    """Return the summary of a dataset in which every judge verdict is the authors' fallback."""
    used = sum(score.scored_by == "judge" for score in scores)
    return replace(scoring, scoring="published", fallback_used=used)


def _model_folder(results: Path) -> Path:
    """Return the folder of a model's results, which is the parent of a run folder."""
    run = results.parent
    return run.parent if _RUN.match(run.name) else run


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine, even under a running event loop (VLMEvalKit's --api-mode --debug)."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(work())).result()
