"""Replay buffers that look often and never train on a group of which too little is left.

``trainer.v1.sampler.custom_sampler`` names the one for the trainer's mode.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import transfer_queue
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

TRAIN = "train"
EXCLUDED_METRIC = "training/infrastructure/excluded_trajectories"


class EagerReplayBuffer(ReplayBuffer):
    """For the trainer mode ``sync``.

    ``trainer.v1.sampler.sampler_kwargs`` may hold:

    - ``poll_seconds``: how often finished trajectories are looked for (0.1; verl's own wait 2);
    - ``rollouts``: ``${actor_rollout_ref.rollout.n}``, so that missing trajectories are counted;
    - ``smallest_group``: fewest trajectories of a failed group that are still trained on (2: one
      alone would have its bare score for an advantage);
    - ``gen_batch_size``: ``${data.gen_batch_size}``; if it is 1, the synchronous trainer replaces
      groups that failed as a whole, as the others always do.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Take what verl hands to a custom sampler."""
        options = kwargs.get("sampler_kwargs") or {}
        self._rollouts = int(options.get("rollouts") or 0)
        self._smallest_group = int(options.get("smallest_group", 2))
        if options.get("gen_batch_size") == 1:
            kwargs |= {"gen_batch_size": 1, "sync_refill_failed_groups": True}
        super().__init__(poll_interval=float(options.get("poll_seconds", 0.1)), **kwargs)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, Any]:
        """Sample as verl does, and count the trajectories that are missing."""
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        if partition_id == TRAIN and self._rollouts:
            sessions = {key.rpartition("_")[0] for key in batch.keys}
            metrics[EXCLUDED_METRIC] = batch_size * self._rollouts - len(sessions)
        return batch, metrics

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        trajectories = self.partitions[TRAIN]
        counts = Counter(key.partition("_")[0] for key in trajectories)
        failed = self.failure_keys[TRAIN]
        too_small = {prompt for prompt in failed if 0 < counts[prompt] < self._smallest_group}
        keys = [key for key in trajectories if key.partition("_")[0] in too_small]
        if keys:
            transfer_queue.kv_clear(partition_id=TRAIN, keys=keys)
            for key in keys:
                del trajectories[key]


class EagerReplayBufferAsync(EagerReplayBuffer, ReplayBufferAsync):
    """The same for ``colocate_async`` and ``separate_async``."""
