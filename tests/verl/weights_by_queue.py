"""Weights from the trainer to a rollout pool of its own through a queue of Ray: no GPU needed.

verl's own checkpoint engines for ``separate_async`` need one. verl imports this module because
``actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module`` names it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any

import torch
from ray.util.queue import Queue
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry


@CheckpointEngineRegistry.register("queue")
class QueueCheckpointEngine(CheckpointEngine):
    """The first rank of the trainer hands all weights to the one rank of the rollout."""

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        self._is_master = is_master
        self._queue: Queue | None = None

    def prepare(self) -> dict[str, Any]:
        return {"queue": Queue()} if self._is_master else {}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        assert (actor_wg_world_size, rollout_world_size) == (1, 1)
        arguments = {"queue": [metadata[0]["queue"]]}
        return dict(arguments), dict(arguments)

    def init_process_group(self, queue: Queue) -> None:
        self._queue = queue

    def finalize(self) -> None:
        self._queue = None

    async def send_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None
    ) -> None:
        assert self._queue is not None
        await self._queue.put_async([(name, one.detach().numpy()) for name, one in weights])

    async def receive_weights(
        self, global_steps: int | None = None
    ) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        assert self._queue is not None
        for name, array in await self._queue.get_async():
            yield name, torch.tensor(array)
