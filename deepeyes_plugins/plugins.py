"""The plugin manager: built-ins and third parties register through the same hooks."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pluggy

from deepeyes_plugins import hookspecs

if TYPE_CHECKING:
    from deepeyes_plugins.data.contracts import Formatter
    from deepeyes_plugins.rewards.contracts import RewardFactory
    from deepeyes_plugins.search.contracts import ImageProviderFactory, TextProviderFactory
    from deepeyes_plugins.tools.resources import EnvironmentFactory, ToolFactory

BUILT_INS = (
    "deepeyes_plugins.tools.builtin",
    "deepeyes_plugins.environments.builtin",
    "deepeyes_plugins.rewards.builtin",
    "deepeyes_plugins.data.builtin",
    "deepeyes_plugins.search.builtin",
)

T = TypeVar("T")


class PluginError(Exception):
    """A plugin cannot be loaded, or two of them claim one name."""


class UnknownNameError(PluginError, KeyError):
    """Nothing of that name is registered; the message lists what is."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry(Mapping[str, T], Generic[T]):
    """Names and what they stand for, each with its owner."""

    def __init__(self, kind: str) -> None:
        """Make an empty registry of ``kind``, a singular noun for messages."""
        self.kind = kind
        self._entries: dict[str, tuple[T, str]] = {}

    def add(self, name: str, value: T, *, owner: str) -> None:
        """Register ``value``.

        Raises:
            PluginError: The name is taken; both owners are named.
        """
        if name in self._entries:
            other = self._entries[name][1]
            raise PluginError(
                f"{self.kind} {name!r} is registered twice: by {other} and by {owner}. "
                "Rename one or uninstall its package."
            )
        self._entries[name] = (value, owner)

    def owner(self, name: str) -> str:
        """Return the plugin that registered ``name``."""
        self[name]
        return self._entries[name][1]

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            known = ", ".join(sorted(self._entries)) or "none"
            raise UnknownNameError(f"unknown {self.kind} {name!r}.{hint} Registered: {known}.")
        return self._entries[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@cache
def manager() -> pluggy.PluginManager:
    """The process's plugin manager, with built-ins and installed plugins loaded.

    Raises:
        PluginError: An installed plugin fails to import; the message names it.
    """
    plugin_manager = pluggy.PluginManager(hookspecs.PROJECT)
    plugin_manager.add_hookspecs(hookspecs)
    for name in BUILT_INS:
        plugin_manager.register(importlib.import_module(name), name)
    for entry_point in entry_points(group=hookspecs.ENTRY_POINT_GROUP):
        package = entry_point.dist.name if entry_point.dist else entry_point.value
        try:
            plugin_manager.register(entry_point.load(), entry_point.name)
            plugin_manager.check_pending()
        except Exception as error:
            raise PluginError(
                f"the plugin {entry_point.name!r} of the package {package!r} cannot be loaded: "
                f"{error!r}. Fix it or uninstall its package."
            ) from error
    return plugin_manager


def collect(kind: str, hook: pluggy.HookCaller) -> Registry[Any]:
    """Ask every plugin behind ``hook`` and return what they registered.

    Raises:
        PluginError: Two plugins claim one name.
    """
    registry: Registry[Any] = Registry(kind)
    for implementation in hook.get_hookimpls():
        register: Callable[..., None] = partial(registry.add, owner=implementation.plugin_name)
        implementation.function(register=register)
    return registry


@cache
def tools() -> Registry[ToolFactory]:
    """Tool factories by name."""
    return collect("tool", manager().hook.register_tools)


@cache
def environments() -> Registry[EnvironmentFactory]:
    """Environment factories by name."""
    return collect("environment", manager().hook.register_environments)


@cache
def rewards() -> Registry[RewardFactory]:
    """Reward factories by data source."""
    return collect("reward", manager().hook.register_rewards)


@cache
def formatters() -> Registry[Formatter]:
    """Dataset formatters by name."""
    return collect("formatter", manager().hook.register_formatters)


@cache
def search_providers() -> Registry[TextProviderFactory]:
    """Factories of text-search providers by name."""
    return collect("search provider", manager().hook.register_search_providers)


@cache
def image_search_providers() -> Registry[ImageProviderFactory]:
    """Factories of image-search providers by name."""
    return collect("image search provider", manager().hook.register_image_search_providers)
