"""What a finished trajectory hands to verl, and what of it travels on to the trainer."""

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

logger = logging.getLogger(__name__)

SAMPLE_FIELD = "deepeyes_sample"
"""Field of a sample in verl's TransferQueue: its :class:`SampleRecord` as JSON."""

_COUNTED_BY_FIGURES = {"turns", "tool_calls", "images", "failed_actions", "infrastructure_errors"}


class TrajectoryOutput(AgentLoopOutput):
    """An agent loop's output that has its trajectory with it until it is scored.

    verl scores an output and then turns it into the fields that it stores for the trainer. There
    the trajectory, tens of kilobytes a sample, is of no more use: a small record takes its place.
    """

    _trajectory: Trajectory = PrivateAttr()

    def __init__(self, trajectory: Trajectory, **fields: Any) -> None:
        """Take verl's own ``fields`` and the trajectory."""
        extra_fields = fields.pop("extra_fields", {})
        recorded = {TRAJECTORY_FIELD: trajectory.model_dump_json()}
        super().__init__(extra_fields={**extra_fields, **recorded}, **fields)
        self._trajectory = trajectory

    def as_dict(self) -> dict[str, Any]:
        """Return verl's fields with the record instead of the trajectory."""
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
    """Take the numbers of a reward that are not counts which the figures make themselves."""
    return {
        name: float(value)
        for name, value in reward_extra_info.items()
        if name not in _COUNTED_BY_FIGURES
        and isinstance(value, int | float)
        and math.isfinite(value)
    }
