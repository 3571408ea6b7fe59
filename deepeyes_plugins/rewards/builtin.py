"""Registration of the built-in rewards."""

from __future__ import annotations

from collections.abc import Callable

from deepeyes_plugins.plugins import hookimpl

_SOURCES = (
    "perception",
    "reason",
    "search",
    "vstar-test",
    "vstar",
    "chart",
    "thinklite_eureka",
)


@hookimpl
def register_rewards(register: Callable[[str, str], None]) -> None:
    """Register the rewards of DeepEyesV2 and of DeepEyes under their data sources."""
    for source in _SOURCES:
        register(source, f"deepeyes_plugins.rewards.presets:{source.replace('-', '_')}")
