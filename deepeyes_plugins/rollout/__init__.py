"""One trajectory: its task, policy and environment contracts, and the one loop that joins them."""

from deepeyes_plugins.rollout.contracts import (
    AssistantTurn,
    Environment,
    InfrastructureError,
    Limits,
    Observation,
    Policy,
    Reward,
    RewardResult,
    Step,
    Task,
    Tool,
)
from deepeyes_plugins.rollout.loop import rollout
from deepeyes_plugins.rollout.trajectory import EndReason, Trajectory, TurnRecord

__all__ = [
    "AssistantTurn",
    "EndReason",
    "Environment",
    "InfrastructureError",
    "Limits",
    "Observation",
    "Policy",
    "Reward",
    "RewardResult",
    "Step",
    "Task",
    "Tool",
    "Trajectory",
    "TurnRecord",
    "rollout",
]
