"""Plugin manager: built-ins and third parties register through the same hooks.

A subpackage with an extension point has a module ``hooks`` (hook specifications and registries) and
a module ``builtin`` (its own registrations). This module finds them by name and imports none.
"""

from __future__ import annotations

import difflib
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib.metadata import entry_points
from importlib.resources import files
from pkgutil import resolve_name
from typing import Any, Generic, TypeVar, cast

import pluggy

PROJECT = "deepeyes"
ENTRY_POINT_GROUP = "deepeyes_plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl: Callable[..., Any] = pluggy.HookimplMarker(PROJECT)

T = TypeVar("T")

_SPECIFYING = threading.RLock()  # Threads look up names at the same time.


class PluginError(Exception):
    """A plugin cannot be loaded, or two plugins register one name."""


class UnknownNameError(PluginError, KeyError):
    """A name is not registered; the message lists those that are."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry(Mapping[str, T], Generic[T]):
    """Registered objects by name, each with the plugin that owns it.

    An object may be registered as the string ``module:attribute``. It is imported when it is looked
    up, so that a name can be checked without an import.
    """

    def __init__(self, kind: str) -> None:
        """Create an empty registry of ``kind``, a singular noun for messages."""
        self.kind = kind
        self._entries: dict[str, tuple[T | str, str]] = {}

    def add(self, name: str, value: T | str, *, owner: str) -> None:
        """Register ``value``, an object or its location as ``module:attribute``.

        Raises:
            PluginError: The name is registered already; both owners are named.
        """
        if name in self._entries:
            other = self._entries[name][1]
            raise PluginError(
                f"{self.kind} {name!r} is registered twice: by {other} and by {owner}. "
                "Rename one or uninstall its package."
            )
        self._entries[name] = (value, owner)

    def require(self, name: str) -> None:
        """Check that ``name`` is registered, without importing the object.

        Raises:
            UnknownNameError: The name is not registered; the message lists those that are, and the
                closest one.
        """
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            known = ", ".join(sorted(self._entries)) or "none"
            raise UnknownNameError(f"unknown {self.kind} {name!r}.{hint} Registered: {known}.")

    def owner(self, name: str) -> str:
        """Return the plugin that registered ``name``.

        Raises:
            UnknownNameError: The name is not registered.
        """
        self.require(name)
        return self._entries[name][1]

    def __getitem__(self, name: str) -> T:
        self.require(name)
        value, owner = self._entries[name]
        if isinstance(value, str):
            try:
                value = cast(T, resolve_name(value))
            except (ImportError, AttributeError, ValueError) as error:
                raise PluginError(
                    f"{self.kind} {name!r} of {owner} cannot be imported from {value!r}: {error!r}"
                ) from error
            self._entries[name] = (value, owner)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@cache
def manager() -> pluggy.PluginManager:
    """The process's plugin manager, with the installed plugins loaded.

    Raises:
        PluginError: An installed plugin fails to import; the message names it.
    """
    plugin_manager = pluggy.PluginManager(PROJECT)
    installed = entry_points(group=ENTRY_POINT_GROUP)
    if installed:  # All hooks must be specified, so that unknown ones of a plugin are errors.
        for subpackage in files(__package__).iterdir():
            if subpackage.joinpath("hooks.py").is_file():
                _specify(plugin_manager, f"{__package__}.{subpackage.name}.hooks")
    for entry_point in installed:
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


def collect(kind: str, specification: Callable[..., None]) -> Registry[Any]:
    """Call a hook of every plugin and return the registry that they filled.

    Args:
        kind: What is registered, a singular noun for messages.
        specification: The hook specification in a module ``hooks``.

    Raises:
        PluginError: Two plugins register one name.
    """
    with _SPECIFYING:
        plugin_manager = manager()
        _specify(plugin_manager, specification.__module__)
    registry: Registry[Any] = Registry(kind)
    hook: pluggy.HookCaller = getattr(plugin_manager.hook, specification.__name__)
    for implementation in hook.get_hookimpls():
        register: Callable[..., None] = partial(registry.add, owner=implementation.plugin_name)
        implementation.function(register=register)
    return registry


def _specify(plugin_manager: pluggy.PluginManager, hooks: str) -> None:
    """Add the hooks of a subpackage and its built-in registrations, once."""
    built_in = f"{hooks.removesuffix('.hooks')}.builtin"
    if plugin_manager.has_plugin(built_in):
        return
    plugin_manager.add_hookspecs(importlib.import_module(hooks))
    plugin_manager.register(importlib.import_module(built_in), built_in)
