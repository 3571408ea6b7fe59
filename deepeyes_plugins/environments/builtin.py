"""Registration of the built-in environments."""

from __future__ import annotations

from collections.abc import Callable

from deepeyes_plugins.plugins import hookimpl


@hookimpl
def register_environments(register: Callable[[str, str], None]) -> None:
    """Register ``deepeyes_v2``, ``visual_toolbox_v2`` (DeepEyes V1) and ``none``."""
    for name in ("deepeyes_v2", "visual_toolbox_v2", "none"):
        register(name, f"deepeyes_plugins.environments.presets:{name}")
