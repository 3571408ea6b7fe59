"""Registration of the agent loop ``deepeyes`` and the estimator ``deepeyes_grpo`` with verl."""

from __future__ import annotations

from types import ModuleType

AGENT_LOOP = "deepeyes"
ADVANTAGE_ESTIMATOR = "deepeyes_grpo"


def register_agent_loop(module: ModuleType) -> None:
    """Register the agent loop; ``module`` is ``verl.experimental.agent_loop.agent_loop``."""
    from deepeyes_plugins.hosts.verl.agent_loop import DeepEyesAgentLoop

    module.register(AGENT_LOOP)(DeepEyesAgentLoop)


def register_advantage_estimator(module: ModuleType) -> None:
    """Register the advantage estimator; ``module`` is ``verl.trainer.ppo.core_algos``."""
    from deepeyes_plugins.hosts.verl.advantage import compute_advantage

    module.register_adv_est(ADVANTAGE_ESTIMATOR)(compute_advantage)
