"""Replay buffers with a short polling interval that drop groups with too few rollouts.

Set ``trainer.v1.sampler.custom_sampler`` to the class for the trainer's mode.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import transfer_queue
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

TRAIN = "train"
EXCLUDED_METRIC = "training/infrastructure/excluded_trajectories"


class EagerReplayBuffer(ReplayBuffer):
    """Replay buffer for the trainer mode ``sync``.

    Keys of ``trainer.v1.sampler.sampler_kwargs``:

    - ``poll_seconds``: polling interval for finished trajectories (0.1; verl's default is 2);
    - ``rollouts``: ``${actor_rollout_ref.rollout.n}``, required to count missing trajectories;
    - ``smallest_group``: minimum number of trajectories of a failed group (2: the advantage of a
      single one would be its bare score); smaller groups are dropped;
    - ``gen_batch_size``: ``${data.gen_batch_size}``; with 1, the synchronous trainer replaces
      groups that failed completely, as the asynchronous ones always do.
    """

    def __init__(self, **kwargs: Any) -> None:
        options = kwargs.get("sampler_kwargs") or {}
        self._rollouts = int(options.get("rollouts") or 0)
        self._smallest_group = int(options.get("smallest_group", 2))
        if options.get("gen_batch_size") == 1:
            kwargs |= {"gen_batch_size": 1, "sync_refill_failed_groups": True}
        super().__init__(poll_interval=float(options.get("poll_seconds", 0.1)), **kwargs)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, Any]:
        """Sample as verl does and count missing trajectories."""
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
    """Replay buffer for the trainer modes ``colocate_async`` and ``separate_async``."""
