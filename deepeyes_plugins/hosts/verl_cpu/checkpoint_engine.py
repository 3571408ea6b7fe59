"""Weights from the trainer to a rollout pool of its own, by gloo: ``separate_async`` on a CPU."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, Iterable
from datetime import timedelta
from typing import Any

import ray
import torch
from torch.distributed import ProcessGroupGloo, TCPStore
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

from deepeyes_plugins.hosts.verl_cpu.activation import CHECKPOINT_ENGINE

_TIMEOUT = timedelta(minutes=5)
_LIST_KEY = "weights"


@CheckpointEngineRegistry.register(CHECKPOINT_ENGINE)
class GlooCheckpointEngine(CheckpointEngine):
    """The first rank of the trainer broadcasts to all ranks of the rollout, one tensor at a time.

    A group lives for one transfer: rollout replicas may come and go between two.
    """

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        """Take what verl gives to every engine.

        Args:
            bucket_size: Not needed: the tensors of a model that a CPU trains are small.
            is_master: This is the trainer's first rank.
        """
        del bucket_size
        self._is_master = is_master
        self._store: TCPStore | None = None
        self._group: ProcessGroupGloo | None = None

    def prepare(self) -> dict[str, Any]:
        """Return where the others meet the master."""
        if not self._is_master:
            return {}
        host = ray.util.get_node_ip_address()
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return {"host": host, "port": self._store.port}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Rank 0 is the trainer's first; its other ranks stay out (rank -1)."""
        size = 1 + rollout_world_size

        def arguments(ranks: list[int]) -> dict[str, list[Any]]:
            count = len(ranks)
            return {"rank": ranks, "size": [size] * count, "address": [metadata[0]] * count}

        return (
            arguments([0] + [-1] * (actor_wg_world_size - 1)),
            arguments(list(range(1, size))),
        )

    def init_process_group(self, rank: int, size: int, address: dict[str, Any]) -> None:
        """Meet the others.

        Args:
            rank: Rank in the group, or -1 to stay out.
            size: Ranks of the group.
            address: What the master's :meth:`prepare` returned.
        """
        if rank < 0:
            return
        if self._store is None:
            self._store = TCPStore(address["host"], address["port"], is_master=False)
        self._group = ProcessGroupGloo(self._store, rank, size, _TIMEOUT)

    def finalize(self) -> None:
        """Leave the group."""
        self._group = self._store = None

    async def send_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None
    ) -> None:
        """Broadcast ``weights``; a rank outside of the group only takes part in gathering them."""
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in weights}
        if self._group is None or self._store is None:
            return
        forms = [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]
        self._store.set(_LIST_KEY, pickle.dumps(forms))
        for tensor in tensors.values():
            await asyncio.to_thread(self._broadcast, tensor)

    async def receive_weights(
        self, global_steps: int | None = None
    ) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        """Yield the names and tensors that the master sends."""
        assert self._store is not None, "verl calls init_process_group first"
        forms = pickle.loads(await asyncio.to_thread(self._store.get, _LIST_KEY))
        for name, shape, dtype in forms:
            tensor = torch.empty(shape, dtype=dtype)
            await asyncio.to_thread(self._broadcast, tensor)
            yield name, tensor

    def _broadcast(self, tensor: torch.Tensor) -> None:
        assert self._group is not None, "verl calls init_process_group first"
        self._group.broadcast(tensor, 0).wait()
