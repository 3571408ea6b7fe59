"""Environment that dispatches actions to tools, used by all presets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from deepeyes_plugins.protocol.actions import (
    Action,
    AnswerAction,
    CodeAction,
    MalformedAction,
    ToolCallAction,
)
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.protocol.dialect import Dialect
from deepeyes_plugins.protocol.observations import code_observation, defuse, tool_response
from deepeyes_plugins.rollout.contracts import (
    Environment,
    InfrastructureError,
    Limits,
    Observation,
    Step,
    Task,
    Tool,
)

logger = logging.getLogger(__name__)

CODE_TOOL = "python"


class ToolEnvironment(Environment):
    """Dispatches each action to its tool; recoverable errors are observations."""

    def __init__(self, dialect: Dialect, tools: Sequence[Tool], limits: Limits) -> None:
        """Make an environment for one trajectory.

        Args:
            dialect: How turns are opened and closed.
            tools: Fresh tools; one named ``python`` takes the code actions.
            limits: When the episode ends.
        """
        self.dialect = dialect
        self.limits = limits
        self._tools: Mapping[str, Tool] = {tool.name: tool for tool in tools}

    def preflight(self, data_source: str) -> None:
        """Check every tool.

        Raises:
            ValueError: A setting, key or file is missing or wrong; the message names it.
        """
        for tool in self._tools.values():
            tool.preflight(data_source)

    async def open(self, task: Task) -> None:
        """Open all tools concurrently; wait for all before returning or raising.

        Raises:
            InfrastructureError: One of them cannot be opened.
        """
        openings = (tool.open(task) for tool in self._tools.values())
        for result in await asyncio.gather(*openings, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def step(self, action: Action) -> Step:
        """Run the action's tool."""
        if isinstance(action, AnswerAction):
            return Step(None)
        if isinstance(action, MalformedAction):
            return Step(_refusal(action.message))
        if isinstance(action, CodeAction):
            name, arguments = CODE_TOOL, {"code": action.code}
        else:
            name, arguments = action.name, action.arguments
        tool = self._tools.get(name)
        if tool is None or (isinstance(action, ToolCallAction) and name == CODE_TOOL):
            return Step(_refusal(self._unknown(name)))
        try:
            return Step(_checked(await tool.call(arguments)), tool=name)
        except InfrastructureError as error:
            logger.warning("tool %s failed: %s", name, error)
            return Step(_unavailable(name, str(error)), tool=name)
        except Exception as error:  # Any other exception is an error of the tool.
            logger.exception("tool %s failed", name)
            return Step(_unavailable(name, f"the tool {name} failed: {error!r}"), tool=name)

    async def close(self) -> None:
        """Close all tools; log failures."""
        for tool in self._tools.values():
            try:
                await tool.close()
            except Exception:
                logger.warning("tool %s cannot be closed", tool.name, exc_info=True)

    def _unknown(self, name: str) -> str:
        callable_names = sorted(set(self._tools) - {CODE_TOOL})
        known = ", ".join(callable_names) or "none"
        code = " Python runs in <code> blocks." if CODE_TOOL in self._tools else ""
        return f"There is no tool {defuse(name)!r}. Tools: {known}.{code}"


def _checked(observation: Observation) -> Observation:
    """Validate the result of a tool, which may be a plugin's.

    Raises:
        TypeError: It is not an observation of texts and images.
    """
    if not isinstance(observation, Observation):
        raise TypeError(f"it returned a {type(observation).__name__}, not an Observation")
    if not isinstance(observation.parts, tuple):
        kind = type(observation.parts).__name__
        raise TypeError(f"the parts of its Observation are a {kind}, not a tuple")
    for part in observation.parts:
        if not isinstance(part, str | EncodedImage):
            kind = type(part).__name__
            raise TypeError(f"its Observation has a {kind}, neither a text nor an EncodedImage")
    return observation


def _unavailable(name: str, error: str) -> Observation:
    reason = f"The tool {name} is unavailable at the moment."
    parts = (
        code_observation("", reason) if name == CODE_TOOL else tool_response([f"Error: {reason}"])
    )
    return Observation(parts, error=error, infrastructure=True)


def _refusal(reason: str) -> Observation:
    return Observation(tool_response([f"Error: {defuse(reason)}"]), error=reason)
