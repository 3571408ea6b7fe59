"""Choose the reward of a task and apply it."""

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
from deepeyes_plugins.rewards.accuracy import rules_can_decide
from deepeyes_plugins.rewards.contracts import RewardResources
from deepeyes_plugins.rewards.hooks import rewards
from deepeyes_plugins.rewards.settings import RewardSettings
from deepeyes_plugins.rollout.contracts import InfrastructureError, Reward, RewardResult, Task
from deepeyes_plugins.rollout.trajectory import EndReason, Trajectory

logger = logging.getLogger(__name__)

INFRASTRUCTURE_FAILED = "infrastructure_failed"
"""The part that is 1 where a failure of ours left no score."""

UNDECIDABLE_SHARE = 0.05
"""Share of references beyond rules from which a data source needs a judge. Our own bound."""


def configured_judge(settings: JudgeSettings) -> Judge | None:
    """Return the judge that the settings name, ``None`` where they name none.

    Raises:
        SettingsError: It cannot be made of what they say.
    """
    try:
        return open_judge(settings)
    except (ValueError, OSError) as error:
        raise SettingsError(f"judge: {error}") from error


class Scorer:
    """Keeps one reward per data source, and the judge that they share; for one event loop."""

    def __init__(
        self,
        settings: RewardSettings,
        judge: Judge | None = None,
        plugins: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Use the registered rewards; nothing is connected yet.

        Args:
            settings: The section ``rewards`` of the settings.
            judge: Decides where rules are not sure; closed together with the scorer.
            plugins: Settings of third-party plugins, by plugin name.
        """
        self._settings = settings
        self._resources = RewardResources(settings, judge, plugins or {})
        self._rewards: dict[str, Reward] = {}
        self._complained: set[str] = set()

    @property
    def part_names(self) -> tuple[str, ...]:
        """The parts that all registered rewards declare; see :meth:`aligned`."""
        names = {name: None for factory in rewards().values() for name in _parts(factory)}
        return (*names, INFRASTRUCTURE_FAILED)

    def reward_for(self, data_source: str) -> Reward:
        """Return the reward of ``data_source``.

        Raises:
            UnknownNameError: None is registered; the message lists what is.
            SettingsError: It needs what the settings do not name, such as a judge.
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
        """See whether a data set can be scored, before anything is generated.

        Args:
            references: Data source and reference answer of each row.

        Raises:
            UnknownNameError: A data source has no reward.
            SettingsError: A reward lacks what it needs; or rules decide because there is no
                judge, and more than 5 % of the references of a data source are beyond them.
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
            The score with the reward's own parts; where there is none, the part
            ``infrastructure_failed`` alone.

        Raises:
            UnknownNameError: The data source has no reward.
            JudgeOutageError: The judge has been away for as long as the settings are patient.
            InfrastructureError: A failure of ours ended the trajectory, or no judge could be
                reached, and ``rewards.infrastructure_failure`` is ``raise``.
            ValueError: The reward returned what is no finite number.
        """
        reward = self.reward_for(task.data_source)
        try:
            if trajectory.end_reason is EndReason.INFRASTRUCTURE:
                raise InfrastructureError(
                    f"task {task.id} has no score, a failure of ours ended it: {trajectory.error}"
                )
            result = await reward.score(task, trajectory)
        except JudgeOutageError:
            raise  # Whoever waited for so long is to stop, not to mark everything from here on.
        except InfrastructureError as error:
            if self._settings.infrastructure_failure == "raise":
                raise
            logger.warning("task %s is marked as failed: %s", task.id, error)
            return RewardResult(0.0, {INFRASTRUCTURE_FAILED: 1.0})
        values = {"score": result.score, **result.parts}
        odd = [name for name, value in values.items() if not math.isfinite(value)]
        if odd:
            raise ValueError(
                f"the reward of {task.data_source!r} gave task {task.id} what is no finite number: "
                f"{', '.join(odd)}"
            )
        return result

    def aligned(self, data_source: str, result: RewardResult) -> dict[str, float]:
        """Return the parts of ``result`` under the same names for every data source.

        Trainers collate rows of all sources in one batch. What a reward does not have is 0; what
        it has but did not declare is left out, with one warning.
        """
        aligned = dict.fromkeys(self.part_names, 0.0)
        for name, value in result.parts.items():
            if name in aligned:
                aligned[name] = float(value)
            elif name not in self._complained:
                self._complained.add(name)
                logger.warning(
                    "the reward of %r returns a part %r that it does not declare: it is left out. "
                    "List it in the attribute 'parts' of what is registered",
                    data_source,
                    name,
                )
        return aligned

    async def aclose(self) -> None:
        """Close the judge's connections and end the processes."""
        await self._resources.algebra.aclose()
        if self._resources.judge is not None:
            await self._resources.judge.aclose()


def _parts(factory: object) -> Iterable[str]:
    parts: Iterable[str] = getattr(factory, "parts", ())
    return parts
