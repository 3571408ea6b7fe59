"""A replay buffer for runs whose steps take seconds."""

from __future__ import annotations

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from deepeyes_plugins.hosts.verl.judging import check_judge
from deepeyes_plugins.hosts.verl.stopping import StopsOnRequest

POLL_SECONDS = 0.1


class EagerReplayBuffer(StopsOnRequest, ReplayBuffer):
    """verl's own, looking for finished trajectories ten times a second, not every two seconds.

    ``trainer.v1.sampler.custom_sampler`` names it. verl makes it before it takes any GPU, so the
    judge is tried here. ``trainer.v1.sampler.sampler_kwargs`` may hold:

    - ``agent_config``: ``${deepeyes.agent_config}``, for the judge to be tried.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Take what verl hands to a custom sampler.

        Raises:
            JudgeUnavailableError: The judge does not work.
        """
        options = kwargs.get("sampler_kwargs") or {}
        check_judge(options.get("agent_config"))
        super().__init__(poll_interval=POLL_SECONDS, **kwargs)
