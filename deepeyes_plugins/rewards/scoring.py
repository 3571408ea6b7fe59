"""Choose the reward of a task and apply it."""

from __future__ import annotations

from deepeyes_plugins import plugins
from deepeyes_plugins.rollout.contracts import Reward, RewardResult, Task
from deepeyes_plugins.rollout.trajectory import Trajectory
from deepeyes_plugins.settings import AgentSettings


class Scorer:
    """Keeps one reward per data source."""

    def __init__(self, settings: AgentSettings) -> None:
        """Use ``settings.rewards`` and the registered rewards."""
        self._settings = settings
        self._rewards: dict[str, Reward] = {}

    def reward_for(self, data_source: str) -> Reward:
        """Return the reward of ``data_source``.

        Raises:
            UnknownNameError: None is registered; the message lists what is.
        """
        if data_source not in self._rewards:
            name = self._settings.rewards.sources.get(data_source, data_source)
            try:
                factory = plugins.rewards()[name]
            except plugins.UnknownNameError as error:
                raise plugins.UnknownNameError(
                    f"data source {data_source!r} has no reward: {error} Name the one to use under "
                    "rewards.sources in agent.yaml."
                ) from error
            self._rewards[data_source] = factory(self._settings)
        return self._rewards[data_source]

    async def score(self, task: Task, trajectory: Trajectory) -> RewardResult:
        """Score ``trajectory`` by the reward of the task's data source."""
        return await self.reward_for(task.data_source).score(task, trajectory)
