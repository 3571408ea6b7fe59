"""Put the agent loop ``deepeyes`` into verl's registry."""

from __future__ import annotations

from types import ModuleType

AGENT_LOOP = "deepeyes"


def register_agent_loop(module: ModuleType) -> None:
    """Register the loop; ``module`` is ``verl.experimental.agent_loop.agent_loop``."""
    from deepeyes_plugins.hosts.verl.agent_loop import DeepEyesAgentLoop

    module.register(AGENT_LOOP)(DeepEyesAgentLoop)
