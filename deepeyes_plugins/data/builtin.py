"""Registration of the built-in dataset formatters."""

from __future__ import annotations

from collections.abc import Callable

from deepeyes_plugins.plugins import hookimpl


@hookimpl
def register_formatters(register: Callable[[str, str], None]) -> None:
    """Register ``deepeyes``: ShareGPT-style conversations in the DeepEyesV2 protocol."""
    register("deepeyes", "deepeyes_plugins.data.formatter:format_sharegpt")
