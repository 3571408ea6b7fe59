"""Agent loop output: the full trajectory for the reward, a small record for the trainer."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from pydantic import PrivateAttr
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from deepeyes_plugins.hosts.verl.reward import TRAJECTORY_FIELD
from deepeyes_plugins.rollout import Trajectory
from deepeyes_plugins.rollout.metrics import SampleRecord
from deepeyes_plugins.rollout.trajectory import COUNTS

logger = logging.getLogger(__name__)

SAMPLE_FIELD = "deepeyes_sample"
"""Field of a sample in verl's TransferQueue: its :class:`SampleRecord` as JSON."""


class TrajectoryOutput(AgentLoopOutput):
    """An agent loop output with its trajectory.

    verl scores an output and then converts it to the fields that it stores for the trainer. There
    the trajectory (tens of kilobytes per sample) is replaced by a small record.
    """

    _trajectory: Trajectory = PrivateAttr()

    def __init__(self, trajectory: Trajectory, **fields: Any) -> None:
        """Create the output from the trajectory and verl's own ``fields``."""
        extra_fields = fields.pop("extra_fields", {})
        recorded = {TRAJECTORY_FIELD: trajectory.model_dump_json()}
        super().__init__(extra_fields={**extra_fields, **recorded}, **fields)
        self._trajectory = trajectory

    def as_dict(self) -> dict[str, Any]:
        """Return verl's fields, with the record instead of the trajectory."""
        output: dict[str, Any] = super().as_dict()
        extra_fields = output["extra_fields"]
        extra_fields.pop(TRAJECTORY_FIELD, None)
        record = SampleRecord.of(
            self._trajectory,
            response_tokens=len(self.response_ids),
            rewards=reward_parts(extra_fields.get("reward_extra_info") or {}),
        )
        output[SAMPLE_FIELD] = record.model_dump_json()
        return output


def reward_parts(reward_extra_info: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a reward, except counts that the metrics compute themselves."""
    return {
        name: float(value)
        for name, value in reward_extra_info.items()
        if name not in COUNTS and isinstance(value, int | float) and math.isfinite(value)
    }
