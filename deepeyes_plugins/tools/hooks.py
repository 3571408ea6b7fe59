"""Extension point for tools."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from deepeyes_plugins.plugins import Registry, collect, hookspec

if TYPE_CHECKING:
    from deepeyes_plugins.tools.resources import ToolFactory


@hookspec
def register_tools(register: Callable[[str, ToolFactory | str], None]) -> None:
    """Add tools: ``register(name, factory)``, where ``factory(resources)`` makes a ``Tool``."""


@cache
def tools() -> Registry[ToolFactory]:
    """Tool factories by name."""
    return collect("tool", register_tools)
