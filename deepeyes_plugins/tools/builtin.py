"""Registration of the built-in tools."""

from __future__ import annotations

from collections.abc import Callable

from deepeyes_plugins.plugins import hookimpl

_TOOLS = {
    "python": "python:PythonTool",
    "search": "search:SearchTool",
    "image_search": "image_search:ImageSearchTool",
    "read_page": "read_page:ReadPageTool",
    "image_zoom_in_tool": "image_tools:ZoomTool",
    "image_rotate_tool": "image_tools:RotateTool",
}


@hookimpl
def register_tools(register: Callable[[str, str], None]) -> None:
    """Register every tool under the name that the model calls it by."""
    for name, tool in _TOOLS.items():
        register(name, f"deepeyes_plugins.tools.{tool}")
