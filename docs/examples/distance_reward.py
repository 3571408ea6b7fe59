"""A reward for counting: the nearer the answer, the better; each tool call costs a little."""

from collections.abc import Callable

from deepeyes_plugins import hookimpl
from deepeyes_plugins.rewards.contracts import RewardFactory, RewardResources
from deepeyes_plugins.rollout import RewardResult, Task, Trajectory


class Distance:
    # The names of the parts, so that every row of a batch logs the same metrics.
    parts = ("near", "calls")

    def __init__(self, resources: RewardResources) -> None:
        self._price = resources.plugins.get("distance_reward", {}).get("price", 0.05)

    async def score(self, task: Task, trajectory: Trajectory) -> RewardResult:
        try:
            near = 1 / (1 + abs(int(trajectory.answer or "") - int(task.ground_truth)))
        except ValueError:
            near = 0.0
        calls = float(sum(trajectory.tool_calls.values()))
        return RewardResult(near - self._price * calls, {"near": near, "calls": calls})


@hookimpl
def register_rewards(register: Callable[[str, RewardFactory], None]) -> None:
    register("my-counting", Distance)  # the data_source of your rows
