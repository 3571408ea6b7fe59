"""Scorer: selects and applies the reward of a task's data source."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.judge.contracts import Judge, JudgeOutageError
from deepeyes_plugins.judge.judge import open_judge
from deepeyes_plugins.judge.settings import JudgeSettings
from deepeyes_plugins.plugins import UnknownNameError
from deepeyes_plugins.rewards.contracts import RewardResources
from deepeyes_plugins.rewards.hooks import rewards
from deepeyes_plugins.rewards.rules import rules_can_decide
from deepeyes_plugins.rewards.settings import RewardSettings
from deepeyes_plugins.rollout.contracts import InfrastructureError, Reward, RewardResult, Task
from deepeyes_plugins.rollout.trajectory import EndReason, Trajectory

logger = logging.getLogger(__name__)

INFRASTRUCTURE_FAILED = "infrastructure_failed"
"""Part that is 1 if an infrastructure error left no score."""

UNDECIDABLE_SHARE = 0.05
"""Share of references that rules cannot compare from which a data source needs a judge."""


def configured_judge(settings: JudgeSettings) -> Judge | None:
    """Return the configured judge, if any.

    Raises:
        SettingsError: The settings are invalid.
    """
    try:
        return open_judge(settings)
    except (ValueError, OSError) as error:
        raise SettingsError(f"judge: {error}") from error


class Scorer:
    """Rewards by data source and their shared judge, for one event loop."""

    def __init__(
        self,
        settings: RewardSettings,
        judge: Judge | None = None,
        plugins: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Use the registered rewards; nothing is connected yet.

        Args:
            settings: The section ``rewards`` of the settings.
            judge: Decides what rules cannot; closed together with the scorer.
            plugins: Settings of third-party plugins, by plugin name.
        """
        self._settings = settings
        self._resources = RewardResources(settings, judge, plugins or {})
        self._rewards: dict[str, Reward] = {}
        self._warned: set[str] = set()

    @property
    def part_names(self) -> tuple[str, ...]:
        """Parts of all registered rewards; see :meth:`aligned`."""
        names = {name: None for factory in rewards().values() for name in _parts(factory)}
        return (*names, INFRASTRUCTURE_FAILED)

    def reward_for(self, data_source: str) -> Reward:
        """Return the reward of ``data_source``.

        Raises:
            UnknownNameError: None is registered; the message lists the registered ones.
            SettingsError: A required setting is missing, such as a judge.
        """
        if data_source not in self._rewards:
            name = self._settings.sources.get(data_source, data_source)
            try:
                factory = rewards()[name]
            except UnknownNameError as error:
                raise UnknownNameError(
                    f"data source {data_source!r} has no reward: {error} Name the one to use under "
                    "rewards.sources in agent.yaml."
                ) from error
            reward = factory(self._resources)
            if getattr(reward, "by_rules", False):
                logger.warning(
                    "accuracy of %r is decided by rules: no judge is configured", data_source
                )
            self._rewards[data_source] = reward
        return self._rewards[data_source]

    def check(self, references: Iterable[tuple[str, str]]) -> None:
        """Check before a run whether a data set can be scored.

        Args:
            references: Data source and reference answer of each row.

        Raises:
            UnknownNameError: A data source has no reward.
            SettingsError: A reward lacks a required setting; or rules decide because there is no
                judge, and cannot compare more than 5 % of the references of a data source.
        """
        rows: Counter[str] = Counter()
        beyond: Counter[str] = Counter()
        example: dict[str, str] = {}
        for source, truth in references:
            rows[source] += 1
            if not rules_can_decide(truth):
                beyond[source] += 1
                example.setdefault(source, truth)
        for source in rows:
            by_rules = getattr(self.reward_for(source), "by_rules", False)
            if by_rules and beyond[source] > UNDECIDABLE_SHARE * rows[source]:
                raise SettingsError(
                    f"{beyond[source]:,} of {rows[source]:,} rows of data source {source!r} have a "
                    f"reference answer that rules cannot compare, such as {example[source]!r:.100}:"
                    " name a judge under judge in agent.yaml, or set decide: rules under "
                    "rewards for this source to accept it"
                )

    async def score(self, task: Task, trajectory: Trajectory) -> RewardResult:
        """Score ``trajectory`` by the reward of the task's data source.

        Returns:
            The score with the reward's own parts, or score 0 with the part
            ``infrastructure_failed`` alone.

        Raises:
            UnknownNameError: The data source has no reward.
            JudgeOutageError: The judge has been unavailable for ``judge.patience``.
            InfrastructureError: An infrastructure error ended the trajectory, or no judge could
                be reached, and ``rewards.infrastructure_failure`` is ``raise``.
            ValueError: The reward returned a number that is not finite.
        """
        reward = self.reward_for(task.data_source)
        try:
            if trajectory.end_reason is EndReason.INFRASTRUCTURE:
                raise InfrastructureError(
                    f"task {task.id} has no score: its trajectory ended with an infrastructure "
                    f"error: {trajectory.error}"
                )
            result = await reward.score(task, trajectory)
        except JudgeOutageError:
            raise  # After the maximum wait the run stops instead of marking all that follows.
        except InfrastructureError as error:
            if self._settings.infrastructure_failure == "raise":
                raise
            logger.warning("task %s is marked as failed: %s", task.id, error)
            return RewardResult(0.0, {INFRASTRUCTURE_FAILED: 1.0})
        values = {"score": result.score, **result.parts}
        odd = [name for name, value in values.items() if not math.isfinite(value)]
        if odd:
            raise ValueError(
                f"the reward of {task.data_source!r} returned numbers that are not finite for task "
                f"{task.id}: {', '.join(odd)}"
            )
        return result

    def aligned(self, data_source: str, result: RewardResult) -> dict[str, float]:
        """Return the parts of ``result`` under the same names for every data source.

        Trainers collate rows of all sources in one batch. Missing parts are 0; undeclared parts
        are dropped, with one warning.
        """
        aligned = dict.fromkeys(self.part_names, 0.0)
        for name, value in result.parts.items():
            if name in aligned:
                aligned[name] = float(value)
            elif name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "the reward of %r returns an undeclared part %r, which is dropped. List it in "
                    "the attribute 'parts' of the registered reward",
                    data_source,
                    name,
                )
        return aligned

    async def aclose(self) -> None:
        """Close the judge's connections and end worker processes."""
        await self._resources.algebra.aclose()
        if self._resources.judge is not None:
            await self._resources.judge.aclose()


def _parts(factory: object) -> Iterable[str]:
    parts: Iterable[str] = getattr(factory, "parts", ())
    return parts
