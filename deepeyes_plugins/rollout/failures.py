"""What becomes of trajectories that our side, not the model, has spoilt."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class FailureSettings(BaseModel):
    """Training: what happens when a trajectory ends because our side failed for good."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    retries: int = Field(
        1,
        ge=0,
        description="Times that such a trajectory is played again from its start. What still fails "
        "has no score and no part in its group's advantage; 0: that happens at once.",
    )
    retry_wait: float = Field(
        10.0, ge=0, description="Seconds before a trajectory is played again; doubles each time."
    )
    smallest_group: int = Field(
        2,
        ge=1,
        description="Trajectories of a prompt that must be left; a group with fewer is given up as "
        "a whole, since one alone has nothing to be compared with. Never more than were asked for.",
    )
