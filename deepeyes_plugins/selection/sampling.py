"""Resumable sampling: plays questions with a served model and scores the trajectories."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

from deepeyes_plugins.data.output import one_at_a_time
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.jobs import Advance, FailureLimit, Ledger, work_through
from deepeyes_plugins.protocol.dialect import Dialect
from deepeyes_plugins.rewards.offline import (
    Labels,
    Line,
    Place,
    ScoreRecord,
    fingerprint,
    lines_of,
    score_line,
)
from deepeyes_plugins.rewards.scorer import Scorer, configured_judge
from deepeyes_plugins.rollout import EndReason, Trajectory, rollout
from deepeyes_plugins.rollout.contracts import InfrastructureError, Policy
from deepeyes_plugins.rollout.log import FILE_NAME, RecordingEnvironment, TrajectoryLog
from deepeyes_plugins.sandbox.contracts import SandboxUnavailable
from deepeyes_plugins.sandbox.embedded import ensure_server
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.selection.questions import BadRow, Question, with_system_prompt
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.resources import Resources

SCORES = "scores.jsonl"

_OPERATION_OF_SANDBOX = {
    *("url", "token_env", "redis_url", "redis_password_env", "idle_timeout", "max_lifetime"),
    *("max_sessions", "room_timeout", "min_free_memory_mb", "spare_sessions", "startup_timeout"),
    *("snapshot_store_mb", "image_cache_mb", "patience", "circuit_failures", "circuit_seconds"),
}
_OPERATION_OF_SEARCH = {"url", "token_env", "cache", "budgets", "run"}


class Model(Protocol):
    """A served model; an asynchronous context manager."""

    @property
    def output_settings(self) -> Mapping[str, Any]:
        """Settings that affect the model's output, as JSON values."""

    async def __aenter__(self) -> Self:
        """Return the model itself; connections are opened later."""

    async def __aexit__(self, *error: object) -> None:
        """Close the connections."""

    async def check(self) -> None:
        """Check that the server is available.

        Raises:
            InfrastructureError: It does not respond, or has no such model.
        """

    async def model(self) -> str:
        """Return the server's name of the model.

        Raises:
            InfrastructureError: The server does not respond.
        """

    def policy(self, dialect: Dialect, *, seed: int) -> Policy:
        """Create the policy of one trajectory."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings for playing questions.

    Attributes:
        name: Name in records.
        environment: Environment instead of the question's own.
        system_prompt: System prompt instead of the question's own; empty for none.
    """

    name: str
    environment: str | None = None
    system_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class _Play:
    question: Question
    variant: Variant
    sample: int
    seed: int
    played: Place | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """Result of sampling.

    Attributes:
        records: All scores, including those of earlier runs.
        failures: Infrastructure errors, which the next run retries.
        torn: Truncated lines of the log, left by a killed run.
    """

    records: list[ScoreRecord]
    failures: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Configuration of sampling.

    Attributes:
        agent: Settings of environment, tools, rewards and judge.
        model: The model.
        folder: Folder for trajectories and scores, from which the next run resumes.
        variants: Variants in which each question is played.
        samples: Samples per question and variant.
        seed: Random seed, from which the seed of each sample is derived.
        keep_images: Whether to write the images of observations.
        concurrency: Trajectories played concurrently.
    """

    agent: AgentSettings
    model: Model
    folder: Path
    variants: Sequence[Variant]
    samples: int
    seed: int = 0
    keep_images: bool = True
    concurrency: int = 64

    async def run(
        self,
        questions: Callable[[], Iterable[Question | BadRow]],
        total: int,
        advance: Advance | None = None,
    ) -> Sampled:
        """Play what no earlier run with the same settings has played.

        Args:
            questions: Returns a new iterator over the questions at each call.
            total: Number of rows.
            advance: Called with trajectories done and in total, which excludes bad and duplicate
                rows.

        Raises:
            DataError: Another process uses the folder.
            InfrastructureError: The model's server does not respond at the start.
            ServiceLostError: The server became unavailable; finished trajectories are stored.
            OSError: The folder cannot be written; finished trajectories are stored.
        """
        with one_at_a_time(self.folder / "lock"):
            async with self.model as model:
                await model.check()
                name = await model.model()
                resources = Resources(self.agent, _sandbox_that_starts())
                judge = configured_judge(self.agent.judge)
                scorer = Scorer(self.agent.rewards, judge, self.agent.plugins)
                try:
                    player = _Player(self, name, resources, scorer)
                    return await self._run(questions, total, advance, player)
                finally:
                    await scorer.aclose()
                    await resources.aclose()

    async def _run(
        self,
        questions: Callable[[], Iterable[Question | BadRow]],
        total: int,
        advance: Advance | None,
        player: _Player,
    ) -> Sampled:
        plays_of_one = len(self.variants) * self.samples
        count = total * plays_of_one
        mark, tell = _score_settings(self.agent), advance or (lambda done, total: None)
        ledger = Ledger(self.folder / SCORES, ScoreRecord)
        known = ledger.resume(
            lambda record: record.settings == mark and player.is_own(record.labels)
        )
        found = Sampled([one for one in known if int(one.labels["sample"]) < self.samples])
        records, failures = found.records, found.failures
        scored = {record.trajectory for record in records}
        log = self.folder / FILE_NAME
        played: dict[tuple[str, str, int], Place] = {}
        done = {_name(record.labels) for record in records}
        for line in lines_of([log] if log.exists() else []):
            labels = line.labels
            if labels is None:
                found.torn.append(f"{line.place}: not a trajectory, perhaps truncated")
            elif player.is_own(labels) and line.key not in scored:
                played[_name(labels)] = line.place
        limit = FailureLimit(self.concurrency)
        tell(len(records), count)

        def plays() -> Iterator[_Play]:
            nonlocal count
            begun: set[str] = set()
            for question in questions():
                if isinstance(question, BadRow) or question.key in begun:
                    count -= plays_of_one
                    continue
                begun.add(question.key)
                for variant in self.variants:
                    for sample in range(self.samples):
                        name = (question.key, variant.name, sample)
                        if name not in done:
                            seed = _seed(self.seed, *name)
                            yield _Play(question, variant, sample, seed, played.get(name))

        results = work_through(plays(), player.play, concurrency=self.concurrency)
        async with aclosing(results):
            async for result in results:
                if isinstance(result, str):
                    failures.append(result)
                    limit.fail(result)
                else:
                    limit.succeed()
                    ledger.append(result)
                    records.append(result)
                tell(len(records) + len(failures), count)
        tell(len(records) + len(failures), count)
        return found


class _Player:
    """Plays and scores trajectories."""

    def __init__(
        self,
        sampling: Sampling,
        model: str,
        resources: Resources,
        scorer: Scorer,
    ) -> None:
        self._sampling = sampling
        self._model = model
        self._resources = resources
        self._scorer = scorer
        self._log = TrajectoryLog(sampling.folder)
        self._mark = _score_settings(sampling.agent)
        self._settings = _fingerprint(sampling, model)

    def is_own(self, labels: Labels) -> bool:
        return labels.get("settings") == self._settings

    async def play(self, play: _Play) -> ScoreRecord | str:
        """Return the score, or the infrastructure error."""
        if play.played is not None:
            line: Line | str = await asyncio.to_thread(play.played.read)
        else:
            line = await self._play(play)
        if isinstance(line, str):
            return line
        outcome = await score_line(line, self._scorer, self._mark, {})
        return outcome.record or f"{play.question.name}: {outcome.reason}"

    async def _play(self, play: _Play) -> Line | str:
        task, variant = play.question.task, play.variant
        if variant.system_prompt is not None:
            task = replace(task, messages=with_system_prompt(task.messages, variant.system_prompt))
        name = variant.environment or play.question.environment
        environment = RecordingEnvironment(environments()[name](self._resources))
        policy = self._sampling.model.policy(environment.dialect, seed=play.seed)
        trajectory: Trajectory = await rollout(policy, environment, task, name=name)
        if trajectory.end_reason is EndReason.INFRASTRUCTURE:
            return f"{play.question.name}: {trajectory.error}"
        trajectory.labels = {
            "question": play.question.key,
            "variant": variant.name,
            "sample": play.sample,
            "seed": play.seed,
            "model": self._model,
            "settings": self._settings,
        }
        images = environment.images if self._sampling.keep_images else []
        await asyncio.to_thread(self._log.write, trajectory, images)
        return Line(Place(self._log.path), trajectory.model_dump_json())


def _sandbox_that_starts() -> Callable[[SandboxSettings], str]:
    """Return a function that finds or starts the sandbox and fails fast after a failed start.

    Tools wait for a remote sandbox that is down. A local one that cannot start would fail again for
    each trajectory, for minutes.
    """
    failure = ""

    def find(settings: SandboxSettings) -> str:
        nonlocal failure
        if not failure:
            try:
                return ensure_server(settings)
            except SandboxUnavailable as error:
                failure = str(error)
        raise InfrastructureError(failure)

    return find


def _score_settings(agent: AgentSettings) -> str:
    return fingerprint(agent.rewards, agent.judge, agent.plugins)


def _name(labels: Labels) -> tuple[str, str, int]:
    return str(labels["question"]), str(labels["variant"]), int(labels["sample"])


def _seed(*parts: object) -> int:
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:7], 16)


def _fingerprint(sampling: Sampling, model: str) -> str:
    """Return a fingerprint of a trajectory's settings, without URLs and timeouts of servers."""
    agent = sampling.agent.model_dump(
        include={
            *("environment", "tools", "coordinates", "limits", "sandbox", "search", "plugins")
        },
        exclude={"sandbox": _OPERATION_OF_SANDBOX, "search": _OPERATION_OF_SEARCH},
        mode="json",
    )
    variants = [(one.name, one.environment, one.system_prompt) for one in sampling.variants]
    facts = [model, agent, dict(sampling.model.output_settings), sampling.seed, variants]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
