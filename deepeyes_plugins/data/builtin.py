"""The dataset formatters of this package, registered like anybody else's."""

from __future__ import annotations

from collections.abc import Callable

from deepeyes_plugins.data.contracts import Formatter
from deepeyes_plugins.data.formatter import format_sharegpt
from deepeyes_plugins.hookspecs import hookimpl


@hookimpl
def register_formatters(register: Callable[[str, Formatter], None]) -> None:
    """Register ``deepeyes``: ShareGPT-style conversations in the DeepEyesV2 protocol."""
    register("deepeyes", format_sharegpt)
