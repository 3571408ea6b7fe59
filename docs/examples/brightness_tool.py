"""A tool that measures how bright a part of the question's image is."""

from collections.abc import Callable, Mapping
from typing import Any

from deepeyes_plugins import hookimpl
from deepeyes_plugins.protocol.observations import tool_response
from deepeyes_plugins.rollout import Observation, Task, Tool
from deepeyes_plugins.tools.resources import Resources, ToolFactory


class Brightness(Tool):
    name = "brightness"
    schema = {
        "type": "object",
        "properties": {"box": {"type": "array", "description": "x1, y1, x2, y2 in pixels"}},
        "required": ["box"],
    }

    def __init__(self, resources: Resources) -> None:
        options = resources.settings.plugins.get("brightness_tool", {})
        self._digits = options.get("digits", 0)

    async def open(self, task: Task) -> None:
        self._image = task.images[0].pil().convert("L")

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        try:
            x1, y1, x2, y2 = arguments["box"]
            part = self._image.crop((x1, y1, x2, y2))
            mean = sum(part.getdata()) / (part.width * part.height)
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            reason = "'box' must be [x1, y1, x2, y2] within the image"
            return Observation(tool_response([f"Error: {reason}"]), error=reason)
        return Observation(tool_response([f"{mean:.{self._digits}f} of 255"]))


@hookimpl
def register_tools(register: Callable[[str, ToolFactory], None]) -> None:
    register(Brightness.name, Brightness)
