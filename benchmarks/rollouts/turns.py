"""Agent loop's own time per turn: between two calls of the engine, without tool time.

The turn is the tenth of a trajectory: the question and eight earlier observations brought a
photograph of 900 x 800 pixels each (928 tokens) and a kilobyte of text, another brought a plot;
some 16,000 tokens and ten images then. The turn has 400 tokens; its observation brings what a plot
brings, 640 x 480 pixels, and a kilobyte of text. Measured are cutting and decoding the turn,
decoding and resizing the image, tokens and masks, each on a fresh trajectory. The same turn as the
second one tells what earlier turns cost.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from deepeyes_plugins.hosts.verl.policy import TokenBudget, TokenPolicy
from deepeyes_plugins.protocol.content import Message
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2
from deepeyes_plugins.protocol.observations import code_observation
from deepeyes_plugins.rollout import Observation, Task
from rollouts.models import figure, photo
from rollouts.simulation import SimulatedEngine

TURN_TOKENS = 400
EARLIER_TURNS = 8


@dataclass(frozen=True)
class Turns:
    """Milliseconds of a turn, and how long the trajectory was.

    Attributes:
        late: Of the tenth turns.
        early: The same turns as the second ones.
        tokens: Before the tenth turn.
        images: Before the tenth turn's observation.
        early_tokens: Before the second turn.
    """

    late: list[float]
    early: list[float]
    tokens: int
    images: int
    early_tokens: int


async def _measure(builder: Any, samples: int) -> Turns:
    engine = SimulatedEngine(builder.tokenizer, slots=1, scale=0.0)
    photos = [photo(900, 800, seed) for seed in range(EARLIER_TURNS + 1)]
    words = "the value is " * 80
    budget = TokenBudget(prompt=8192, response=1 << 20, turn=8192)
    late, early = [], []
    policy, tokens, images, early_tokens = None, 0, 0, 0
    for sample in range(samples):
        spent = 0.0

        async def generate(**_: Any) -> Any:
            nonlocal spent
            started = time.perf_counter()
            output = await engine.generate(TURN_TOKENS, last=False)
            spent += time.perf_counter() - started
            return output

        policy = TokenPolicy(generate, builder, DEEPEYES_V2, budget, {}, engine="vllm")
        parts = (photos[0], "What is the value?")
        await policy.begin(Task("1", (Message("user", parts),)))

        async def turn(observation: Observation, policy: TokenPolicy = policy) -> float:
            nonlocal spent
            spent = 0.0
            started = time.perf_counter()
            await policy.act()
            if not await policy.observe(observation):
                raise RuntimeError("the observation did not fit")
            return 1000 * (time.perf_counter() - started - spent)

        for number in range(1, EARLIER_TURNS + 1):
            await turn(Observation(code_observation(words, "", [photos[number]])))
            if number == 1:
                early_tokens = len(policy.stream.ids)
                fresh = figure(2 * sample)  # never seen before: nothing of it is in a cache
                early.append(await turn(Observation(code_observation(words, "", [fresh]))))
        tokens, images = len(policy.stream.ids), len(policy.images)
        fresh = figure(2 * sample + 1)
        late.append(await turn(Observation(code_observation(words, "", [fresh]))))
    return Turns(late, early, tokens, images, early_tokens)


def measure(builder: Any, *, samples: int) -> Turns:
    """Measure ``samples`` trajectories."""
    return asyncio.run(_measure(builder, samples))
