"""A replay buffer for runs whose steps take seconds."""

from __future__ import annotations

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

POLL_SECONDS = 0.1


class EagerReplayBuffer(ReplayBuffer):
    """verl's own, looking for finished trajectories ten times a second, not every two seconds.

    ``trainer.v1.sampler.custom_sampler`` names it.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Take what verl hands to a custom sampler."""
        super().__init__(poll_interval=POLL_SECONDS, **kwargs)
