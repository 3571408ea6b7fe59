"""Put the rollout engine ``transformers`` into verl's registries."""

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
