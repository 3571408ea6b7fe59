"""A plugin for the real run: an agent that is busy with tools early in training and then gives up.

Its model is random, so the actions are chosen here; everything else is real.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deepeyes_plugins import hookimpl
from deepeyes_plugins.environments.tool_environment import ToolEnvironment
from deepeyes_plugins.protocol.actions import Action, AnswerAction, CodeAction
from deepeyes_plugins.protocol.dialect import Dialect
from deepeyes_plugins.rollout import AssistantTurn, RewardResult, Task, Trajectory
from deepeyes_plugins.tools.hooks import tools

BUSY_QUESTIONS = 4
"""The first questions of the data are met with code, the others with an answer at once."""


class BusyEnvironment(ToolEnvironment):
    async def open(self, task: Task) -> None:
        self._to_do = ["print(1)", "nothing"] if int(task.id) < BUSY_QUESTIONS else []
        await super().open(task)

    def parse(self, turn: AssistantTurn) -> Action | None:
        return CodeAction(self._to_do.pop(0)) if self._to_do else AnswerAction("red")


def make(resources: Any) -> BusyEnvironment:
    # A random model writes one of these letters soon, at different places.
    dialect = Dialect(stop=("a", "e", "i", "o", "t"))
    return BusyEnvironment(dialect, [tools()["python"](resources)], resources.settings.limits)


class BusyReward:
    """A score that differs by sample, and what a judge would have had to do with it."""

    parts = ("acc", "judged", "judge_cached", "judge_calls", "judge_seconds")

    async def score(self, task: Task, trajectory: Trajectory) -> RewardResult:
        tokens = sum(turn.tokens for turn in trajectory.turns)
        cached = float(trajectory.labels.get("session") != 0)
        parts = (float(tokens % 2), 1.0, cached, 1.0 - cached, 0.5 * (1.0 - cached))
        return RewardResult(tokens / 64, dict(zip(self.parts, parts, strict=True)))


@hookimpl
def register_rewards(register: Callable[[str, Any], None]) -> None:
    for source in ("busy-a", "busy-b"):
        register(source, lambda _: BusyReward())


@hookimpl
def register_environments(register: Callable[[str, Any], None]) -> None:
    register("busy", make)
