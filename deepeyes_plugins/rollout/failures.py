"""Settings for trajectories that end with an infrastructure error in training."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from deepeyes_plugins.renamed import renamed_keys


class FailureSettings(BaseModel):
    """Training: what happens when a trajectory ends with an infrastructure error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    retries: int = Field(
        1,
        ge=0,
        description="Retries of such a trajectory, each from its start. A trajectory that still "
        "fails has no score and is left out of its group's advantage.",
    )
    retry_wait: float = Field(
        10.0, ge=0, description="Seconds before the first retry; doubles with each further one."
    )
    min_group_size: int = Field(
        2,
        ge=1,
        description="Minimum number of successful rollouts per prompt; smaller groups are "
        "discarded.",
    )

    _renamed = renamed_keys("failures", smallest_group="min_group_size")
