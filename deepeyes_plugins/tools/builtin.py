"""The tools of this package, registered like anybody else's."""

from __future__ import annotations

from collections.abc import Callable

from deepeyes_plugins.hookspecs import hookimpl
from deepeyes_plugins.tools.image_search import ImageSearchTool
from deepeyes_plugins.tools.image_tools import RotateTool, ZoomTool
from deepeyes_plugins.tools.python import PythonTool
from deepeyes_plugins.tools.read_page import ReadPageTool
from deepeyes_plugins.tools.resources import ToolFactory
from deepeyes_plugins.tools.search import SearchTool


@hookimpl
def register_tools(register: Callable[[str, ToolFactory], None]) -> None:
    """Register every tool under the name that the model calls it by."""
    for tool in (PythonTool, SearchTool, ImageSearchTool, ReadPageTool, ZoomTool, RotateTool):
        register(tool.name, tool)
