"""Extension point for dataset formatters."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from deepeyes_plugins.plugins import Registry, collect, hookspec

if TYPE_CHECKING:
    from deepeyes_plugins.data.contracts import Formatter


@hookspec
def register_formatters(register: Callable[[str, Formatter | str], None]) -> None:
    """Add dataset formatters: ``formatter(row)`` returns a ``Conversation``."""


@cache
def formatters() -> Registry[Formatter]:
    """Dataset formatters by name."""
    return collect("formatter", register_formatters)
