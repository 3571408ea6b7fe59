"""Extension point for environments."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from deepeyes_plugins.plugins import Registry, collect, hookspec

if TYPE_CHECKING:
    from deepeyes_plugins.tools.resources import EnvironmentFactory


@hookspec
def register_environments(register: Callable[[str, EnvironmentFactory | str], None]) -> None:
    """Add environments: ``factory(resources)`` makes a fresh ``Environment``."""


@cache
def environments() -> Registry[EnvironmentFactory]:
    """Environment factories by name."""
    return collect("environment", register_environments)
