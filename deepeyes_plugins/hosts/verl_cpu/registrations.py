"""Put the rollout engine ``transformers`` and its weight transfer into verl's registries."""

from __future__ import annotations

from types import ModuleType

from deepeyes_plugins.hosts.verl_cpu.activation import ENGINE


def register_replica(module: ModuleType) -> None:
    """Register the replica; ``module`` is ``verl.workers.rollout.replica``."""

    def load() -> type:
        from deepeyes_plugins.hosts.verl_cpu.rollout import TransformersReplica

        return TransformersReplica

    module.RolloutReplicaRegistry.register(ENGINE, load)


def register_rollout(module: ModuleType) -> None:
    """Register the adapter; ``module`` is ``verl.workers.rollout.base``."""
    module._ROLLOUT_REGISTRY[ENGINE, "async"] = (
        "deepeyes_plugins.hosts.verl_cpu.rollout.TransformersAdapter"
    )


def register_checkpoint_engine(module: ModuleType) -> None:
    """Register ``gloo``; ``module`` is ``verl.checkpoint_engine.base``."""
    del module
    import deepeyes_plugins.hosts.verl_cpu.checkpoint_engine  # noqa: F401 - registers itself
