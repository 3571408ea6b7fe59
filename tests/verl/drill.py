"""A plugin for training runs in which things go wrong: an environment that acts by itself.

A model that was never trained emits noise; here every turn of it counts as the next cell of a
script, which the real tool runs in the real sandbox. The row's ``extra_info.drill`` names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from deepeyes_plugins import hookimpl
from deepeyes_plugins.environments.tool_environment import ToolEnvironment
from deepeyes_plugins.protocol.actions import Action, AnswerAction, CodeAction
from deepeyes_plugins.protocol.dialect import Dialect
from deepeyes_plugins.rewards.contracts import RewardFactory
from deepeyes_plugins.rollout import (
    AssistantTurn,
    InfrastructureError,
    RewardResult,
    Task,
    Trajectory,
)
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.python import PythonTool
from deepeyes_plugins.tools.resources import EnvironmentFactory, Resources

CELLS = {
    "pictures": ["for _ in range(30):\n    display(image_1.crop((0, 0, 32, 32)))", "1 + 1"],
    "slow": ["x = 1", "import time\ntime.sleep(3)", "x + 1"],
    "one_lost": ["1 + 1"],
    "all_lost": ["1 + 1"],
}
SOON_ENDS = tuple("aeiounrst. ")
"""Stop strings that noise contains before long."""

_openings: Counter[str] = Counter()


class DrillEnvironment(ToolEnvironment):
    """Plays the script of its task."""

    def __init__(self, resources: Resources) -> None:
        dialect = Dialect(stop=SOON_ENDS)
        super().__init__(dialect, [PythonTool(resources)], resources.settings.limits)
        self._cells: list[str] = []

    async def open(self, task: Task) -> None:
        drill = task.metadata["drill"]
        self._cells = list(CELLS[drill])
        _openings[task.id] += 1
        if drill == "all_lost" or (drill == "one_lost" and _openings[task.id] % 4 == 1):
            self._cells = ["never runs"]
            raise InfrastructureError("part of the drill")
        await super().open(task)

    def parse(self, turn: AssistantTurn) -> Action:
        return CodeAction(self._cells.pop(0)) if self._cells else AnswerAction("red")


class DrillReward:
    """Noise gets a score, too, so that there is something to learn."""

    def __init__(self, settings: AgentSettings) -> None:
        del settings

    async def score(self, task: Task, trajectory: Trajectory) -> RewardResult:
        score = len(trajectory.assistant_turns[0]) % 7 / 6
        return RewardResult(score, {"acc": score})


@hookimpl
def register_rewards(register: Callable[[str, RewardFactory], None]) -> None:
    """Register ``drill``."""
    register("drill", DrillReward)


@hookimpl
def register_environments(register: Callable[[str, EnvironmentFactory], None]) -> None:
    """Register ``drill``."""
    register("drill", DrillEnvironment)
