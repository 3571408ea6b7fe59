"""The stub tool of the comparison with verl's stock loop: the same text for both, at once.

This project finds it as a plugin, verl as a file of function tools.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from deepeyes_plugins import hookimpl
from deepeyes_plugins.protocol.observations import tool_response
from deepeyes_plugins.rollout import Observation, Task, Tool
from deepeyes_plugins.tools.resources import Resources, ToolFactory

NAME = "look_up"
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"query": "dot"}}\n</tool_call>'


def result() -> str:
    """A text of varying length: verl's trainer fails where all sequences are equally long."""
    return "dot " * random.randint(4, 12)


class LookUpTool(Tool):
    """Finds something about everything."""

    name = NAME

    def __init__(self, resources: Resources) -> None:
        """Nothing is shared."""

    async def open(self, task: Task) -> None:
        """Nothing to prepare."""

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Return a few words."""
        return Observation(tool_response([result()]))


@hookimpl
def register_tools(register: Callable[[str, ToolFactory], None]) -> None:
    """Register the stub."""
    register(NAME, LookUpTool)
