"""The event loop of a worker with 512 live trajectories and 12-megapixel images.

32 prompts with a photograph of 4,000 x 3,000 pixels each, sixteen rollouts of every prompt, all
begun at once: the worst moment of a step. In real time, each plays the real loop and policy against
the simulated engine, and every call brings a plot back. A sleeper asks the loop to be woken every
5 ms; its lag is how much later it is woken. The tools are simulated too: on a machine of few cores
a sandbox of 512 sessions would be measured instead of the loop.
"""

from __future__ import annotations

import asyncio
import gc
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from deepeyes_plugins.hosts.verl.policy import TokenBudget, TokenPolicy
from deepeyes_plugins.protocol.actions import Action
from deepeyes_plugins.protocol.content import Message
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2
from deepeyes_plugins.protocol.observations import code_observation
from deepeyes_plugins.rollout import Environment, Limits, Observation, Task, rollout
from deepeyes_plugins.rollout.contracts import Step
from rollouts.models import figure, photo
from rollouts.simulation import TURNS, SimulatedEngine, draw

WAKE_SECONDS = 0.005


@dataclass(frozen=True)
class Lag:
    """Lag of the event loop.

    Attributes:
        milliseconds: The lag of every time that the sleeper was woken.
        live: Most trajectories at once.
        memory: Peak memory of the process above what it had before, in MiB per live trajectory.
        seconds: Of the whole.
    """

    milliseconds: list[float]
    live: int
    memory: float
    seconds: float


class PlottingEnvironment(Environment):
    """A tool with latency that returns a new plot for every call."""

    dialect = DEEPEYES_V2

    def __init__(self, waits: list[float], seed: int) -> None:
        """Take the seconds of each call."""
        self.limits = Limits(turns=TURNS, wall_time=24 * 3600)
        self._waits = iter(enumerate(waits, 10 * seed))

    async def open(self, task: Task) -> None:
        """Nothing to open."""

    async def step(self, action: Action) -> Step:
        """Wait, then return a plot, drawn off the loop."""
        seed, wait = next(self._waits)
        await asyncio.sleep(wait)
        plot = await asyncio.to_thread(figure, seed)
        return Step(Observation(code_observation("the value is 3", "", [plot])), tool="python")

    async def close(self) -> None:
        """Nothing to close."""


async def _measure(builder: Any, prompts: int, megapixels: int, window: float) -> Lag:
    side = round((megapixels * 1e6 / 12) ** 0.5)
    photos = [photo(4 * side, 3 * side, seed) for seed in range(prompts)]
    live = prompts * 16
    draws = draw(live)
    engine = SimulatedEngine(builder.tokenizer, slots=live, scale=1.0)
    budget = TokenBudget(prompt=8192, response=1 << 20, turn=8192)
    process = psutil.Process()
    gc.collect()
    before = peak = process.memory_info().rss
    lags: list[float] = []

    async def sleeper() -> None:
        nonlocal peak
        while True:
            due = time.perf_counter() + WAKE_SECONDS
            await asyncio.sleep(WAKE_SECONDS)
            lags.append(1000 * (time.perf_counter() - due))
            peak = max(peak, process.memory_info().rss)

    async def one(number: int) -> None:
        turns = iter(enumerate(draws.tokens[number].tolist(), 1))

        async def generate(**_: Any) -> Any:
            at, count = next(turns)
            return await engine.generate(count, last=at == TURNS)

        policy = TokenPolicy(generate, builder, DEEPEYES_V2, budget, {}, engine="vllm")
        waits = draws.tools[number].tolist()
        parts = (photos[number // 16], "What is the value?")
        task = Task(str(number), (Message("user", parts),))
        trajectory = await rollout(policy, PlottingEnvironment(waits, number), task)
        if trajectory.error is not None:
            raise RuntimeError(trajectory.error)

    watch = asyncio.create_task(sleeper())
    started = time.perf_counter()
    playing = [asyncio.create_task(one(number)) for number in range(live)]
    done, rest = await asyncio.wait(playing, timeout=window)
    seconds = time.perf_counter() - started
    watch.cancel()
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        task.result()
    return Lag(lags, live, (peak - before) / (1 << 20) / live, seconds)


def measure(builder: Any, *, prompts: int, megapixels: int = 12, window: float = 90.0) -> Lag:
    """Run ``prompts`` x 16 trajectories at once, in real time.

    Args:
        builder: verl's token builder.
        prompts: 32 for 512 live trajectories.
        megapixels: Of each prompt's photograph.
        window: Seconds after which it ends; few trajectories have until then.
    """
    return asyncio.run(_measure(builder, prompts, megapixels, window))


def percentile(values: list[float], share: float) -> float:
    """Return the ``share``-th percentile."""
    return float(np.percentile(values, share))
