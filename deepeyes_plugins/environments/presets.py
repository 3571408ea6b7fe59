"""Environment presets: dialect, tools and turn limit."""

from __future__ import annotations

from functools import partial

from deepeyes_plugins.environments.tool_environment import ToolEnvironment
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2, PLAIN, VISUAL_TOOLBOX_V2, Dialect
from deepeyes_plugins.rollout.contracts import Environment
from deepeyes_plugins.tools.hooks import tools as registered_tools
from deepeyes_plugins.tools.resources import EnvironmentFactory, Resources


def make_environment(
    name: str,
    dialect: Dialect,
    tools: tuple[str, ...],
    turns: int | None,
    resources: Resources,
) -> Environment:
    """Make a fresh environment from a preset and the settings.

    Args:
        name: Name of the preset; ``settings.tools`` may give it other tools.
        dialect: How turns are opened and closed.
        tools: Names of its default tools.
        turns: Maximum number of turns, which settings can only lower.
        resources: Settings and shared connections.
    """
    settings = resources.settings
    registry = registered_tools()
    chosen = [registry[tool](resources) for tool in settings.tools.get(name, tools)]
    limits = settings.limits
    if turns is not None and turns < limits.turns:
        limits = limits.model_copy(update={"turns": turns})
    return ToolEnvironment(dialect, chosen, limits)


deepeyes_v2: EnvironmentFactory = partial(
    make_environment, "deepeyes_v2", DEEPEYES_V2, ("python", "search", "image_search"), None
)
visual_toolbox_v2: EnvironmentFactory = partial(
    make_environment,
    "visual_toolbox_v2",
    VISUAL_TOOLBOX_V2,
    ("image_zoom_in_tool", "image_rotate_tool"),
    5,
)
none: EnvironmentFactory = partial(make_environment, "none", PLAIN, (), 1)
