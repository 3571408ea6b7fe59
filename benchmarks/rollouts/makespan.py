"""Makespan of a batch of trajectories: independent, and with a barrier after every turn.

The barrier is computed, not played, and so costs it nothing of its own: each turn lasts as long as
the slowest generation and then the slowest call of all trajectories. The critical path is the
longer of two bounds that no schedule can beat: the trajectory that takes longest alone, and all
generation divided by the engine's slots.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np

from deepeyes_plugins.hosts.verl.policy import TokenBudget, TokenPolicy
from deepeyes_plugins.protocol.actions import Action
from deepeyes_plugins.protocol.content import Message
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2
from deepeyes_plugins.protocol.observations import code_observation
from deepeyes_plugins.rollout import EndReason, Environment, Limits, Observation, Task, rollout
from deepeyes_plugins.rollout.contracts import Step
from rollouts.models import make_builder
from rollouts.simulation import TURNS, Draws, SimulatedEngine, draw

REPLICAS = 32
"""Of the engine: one per GPU in the authors' script (4 nodes of 8, TP 1)."""
REPLICA_SLOTS = 128
"""Sequences that a replica generates at once. At 57 KB a token (Qwen2.5-VL-7B, bf16) as many
contexts of 5,000 tokens take 36 GB, which fits an 80 GB GPU: no trajectory of 256 x 16 waits."""
SLOTS = REPLICAS * REPLICA_SLOTS


@dataclass(frozen=True)
class Makespan:
    """Seconds, in the time of the simulation.

    Attributes:
        ours: Every trajectory at its own pace, played.
        barrier: All wait for the slowest of each turn.
        replica_barrier: Those of one engine replica wait for each other, and all at the end.
        critical_path: What no schedule can beat.
    """

    ours: float
    barrier: float
    replica_barrier: float
    critical_path: float


class TimedEnvironment(Environment):
    """Responds to every call after a given latency."""

    dialect = DEEPEYES_V2

    def __init__(self, seconds: np.ndarray, scale: float) -> None:
        """Take the seconds of each call and how long a second is here."""
        self.limits = Limits(turns=TURNS, wall_time=24 * 3600)
        self._waits = iter((seconds * scale).tolist())

    async def open(self, task: Task) -> None:
        """Nothing to open."""

    async def step(self, action: Action) -> Step:
        """Wait, then return a line of output."""
        await asyncio.sleep(next(self._waits))
        return Step(Observation(code_observation("the value is 3", "")), tool="python")

    async def close(self) -> None:
        """Nothing to close."""


async def _play(draws: Draws, builder: Any, scale: float) -> float:
    """Run all trajectories with the real loop and policy; return the wall time."""
    slots = max(1, SLOTS * len(draws.tokens) // (256 * 16))
    engine = SimulatedEngine(builder.tokenizer, slots=slots, scale=scale)
    budget = TokenBudget(prompt=1000, response=1 << 20, turn=1 << 17)
    task = Task("1", (Message("system", ("Look.",)), Message("user", ("What is the value?",))))

    async def one(tokens: np.ndarray, tools: np.ndarray) -> EndReason:
        turns = iter(enumerate(tokens.tolist(), 1))

        async def generate(**_: Any) -> Any:
            number, count = next(turns)
            return await engine.generate(count, last=number == len(tokens))

        policy = TokenPolicy(generate, builder, DEEPEYES_V2, budget, {}, engine="vllm")
        return (await rollout(policy, TimedEnvironment(tools, scale), task)).end_reason

    started = time.perf_counter()
    ends = await asyncio.gather(*map(one, draws.tokens, draws.tools))
    seconds = time.perf_counter() - started
    if set(ends) != {EndReason.ANSWER}:
        raise RuntimeError(f"trajectories ended with {set(ends)}")
    return seconds


def play(draws: Draws, scale: float) -> float:
    """Run the trajectories of one worker; return the wall time."""
    return asyncio.run(_play(draws, make_builder(), scale))


def barrier(draws: Draws) -> float:
    """Compute the time of a batch with a barrier after every turn."""
    generation = np.maximum(draws.generation.max(0), draws.generation.sum(0) / SLOTS)
    return float(generation.sum() + draws.tools.max(0).sum())


def critical_path(draws: Draws) -> float:
    """Compute the critical path: the time of the longest trajectory."""
    alone = draws.generation.sum(1) + draws.tools.sum(1)
    return float(max(alone.max(), draws.generation.sum() / SLOTS))


def measure(*, prompts: int, scale: float, workers: int, rollouts: int = 16) -> Makespan:
    """Run ``prompts`` x ``rollouts`` trajectories of nine turns.

    Args:
        prompts: 256 in the authors' script.
        scale: Seconds here for a second there; the loop's own time is not scaled.
        workers: Processes that share the trajectories, as verl's agent loop workers do.
        rollouts: Of each prompt.
    """
    count = prompts * rollouts
    draws = draw(count)

    def share(parts: int) -> list[Draws]:
        rows = np.array_split(np.arange(count), parts)
        return [Draws(draws.tokens[some], draws.tools[some]) for some in rows]

    if workers == 1:
        played = [play(draws, scale)]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            played = list(pool.map(play, share(workers), repeat(scale)))
    return Makespan(
        ours=max(played) / scale,
        barrier=barrier(draws),
        replica_barrier=max(map(barrier, share(min(REPLICAS, prompts)))),
        critical_path=critical_path(draws),
    )
