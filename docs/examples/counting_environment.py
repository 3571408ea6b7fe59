"""An environment in which the agent guesses a number and is told whether it is too low or high."""

from collections.abc import Callable

from deepeyes_plugins import hookimpl
from deepeyes_plugins.protocol.actions import Action, ToolCallAction
from deepeyes_plugins.protocol.dialect import Dialect
from deepeyes_plugins.protocol.observations import tool_response
from deepeyes_plugins.rollout import Environment, Observation, Step, Task
from deepeyes_plugins.tools.resources import EnvironmentFactory, Resources


class Counting(Environment):
    # A turn ends at this string; the turn before it is what the model thinks.
    dialect = Dialect(prefill="<think>", stop=("</tool_call>",))

    def __init__(self, resources: Resources) -> None:
        self.limits = resources.settings.limits

    async def open(self, task: Task) -> None:
        self._count = int(task.ground_truth)

    async def step(self, action: Action) -> Step:
        if not isinstance(action, ToolCallAction) or action.name != "guess":
            reason = 'call {"name": "guess", "arguments": {"count": NUMBER}} or answer'
            return Step(Observation(tool_response([f"Error: {reason}"]), error=reason))
        guess = action.arguments.get("count")
        if not isinstance(guess, int):
            return Step(Observation(tool_response(["Error: count is a number"]), error="count"))
        hint = "right" if guess == self._count else "low" if guess < self._count else "high"
        return Step(Observation(tool_response([hint])), tool="guess")

    async def close(self) -> None:
        pass


@hookimpl
def register_environments(register: Callable[[str, EnvironmentFactory], None]) -> None:
    register("counting", Counting)
