"""The extension points. Each hook is handed a ``register(name, object)`` callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from deepeyes_plugins.data.contracts import Formatter
    from deepeyes_plugins.rewards.contracts import RewardFactory
    from deepeyes_plugins.search.contracts import ImageProviderFactory, TextProviderFactory
    from deepeyes_plugins.tools.resources import EnvironmentFactory, ToolFactory

PROJECT = "deepeyes"
ENTRY_POINT_GROUP = "deepeyes_plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl: Callable[..., Any] = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_tools(register: Callable[[str, ToolFactory], None]) -> None:
    """Add tools: ``register(name, factory)``, where ``factory(resources)`` makes a ``Tool``."""


@hookspec
def register_environments(register: Callable[[str, EnvironmentFactory], None]) -> None:
    """Add environments: ``factory(resources)`` makes a fresh ``Environment``."""


@hookspec
def register_rewards(register: Callable[[str, RewardFactory], None]) -> None:
    """Add rewards by data source: ``factory(resources)`` makes a ``Reward``."""


@hookspec
def register_formatters(register: Callable[[str, Formatter], None]) -> None:
    """Add dataset formatters: ``formatter(row)`` returns a ``Conversation``."""


@hookspec
def register_search_providers(register: Callable[[str, TextProviderFactory], None]) -> None:
    """Add text-search providers: ``factory(options)`` makes a ``TextSearchProvider``."""


@hookspec
def register_image_search_providers(register: Callable[[str, ImageProviderFactory], None]) -> None:
    """Add image-search providers: ``factory(options)`` makes an ``ImageSearchProvider``."""
