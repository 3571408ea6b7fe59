"""A simulated engine and tools, and where their latencies come from.

Nobody publishes per-call traces of an agentic run of this kind, so the draws are distributions
with known anchors, in seconds:

- A turn's tokens are log-normal with median 250 and sigma 0.8, at most 8,192 (the limit of a
  single response in the authors' training script); each takes 25 ms, what a 7B model on one H100
  takes with some 64 sequences in the batch.
- 85 % of the tool calls run code: log-normal, median 0.1, sigma 1 (docs/sandbox.md: a plot takes
  70 ms, a trivial cell 2 ms, and model code does more than either).
- 13 % search: log-normal, median 1.5, sigma 0.8 (a search interface and its result pages).
- 2 % are the heavy tail, code that loops or a page that does not load: Pareto with exponent 1.1
  from 5 seconds, cut at 200, where the sandbox stops a cell in RL.

All draws of a run come from one seed, and every schedule gets the same ones.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TOKEN_SECONDS = 0.025
LONGEST_TURN = 8192
LONGEST_CALL = 200.0
TURNS = 9

CALL = "Look at that again.</think>\n<code>\n```python\nimage_1.crop((0, 0, 9, 9))\n```\n</code>"
ANSWER = "Seen.</think>\n<answer>red</answer>"


@dataclass(frozen=True)
class Draws:
    """Latencies of a batch; the last turn answers and calls no tool.

    Attributes:
        tokens: Tokens of each turn, ``(trajectories, turns)``.
        tools: Seconds of each call, ``(trajectories, turns - 1)``.
    """

    tokens: np.ndarray
    tools: np.ndarray

    @property
    def generation(self) -> np.ndarray:
        """Seconds of each turn, ``(trajectories, turns)``."""
        return self.tokens * TOKEN_SECONDS


def draw(trajectories: int, turns: int = TURNS, seed: int = 0) -> Draws:
    """Draw the latencies of a batch."""
    source = np.random.default_rng(seed)
    tokens = source.lognormal(np.log(250), 0.8, (trajectories, turns))
    calls = (trajectories, turns - 1)
    kinds = source.random(calls)
    code = source.lognormal(np.log(0.1), 1.0, calls)
    search = source.lognormal(np.log(1.5), 0.8, calls)
    stuck = 5.0 * (1 + source.pareto(1.1, calls))
    tools = np.where(kinds < 0.85, code, np.where(kinds < 0.98, search, stuck))
    return Draws(np.clip(tokens, 40, LONGEST_TURN).astype(int), np.minimum(tools, LONGEST_CALL))


@dataclass
class Output:
    """What verl's servers return."""

    token_ids: list[int]
    log_probs: list[float] | None
    routed_experts: Any = None
    stop_reason: str | None = "completed"
    num_preempted: int | None = None
    extra_fields: dict[str, Any] = field(default_factory=dict)


class SimulatedEngine:
    """Sleeps as long as a turn takes, in one of its slots, and returns that many tokens."""

    def __init__(self, tokenizer: Any, *, slots: int, scale: float) -> None:
        """Make an engine.

        Args:
            tokenizer: Of the model.
            slots: Sequences that it generates at once; the others wait.
            scale: Seconds here for a second there.
        """
        self._slots = asyncio.Semaphore(slots)
        self._scale = scale
        self._call = tokenizer.encode(CALL)
        self._answer = [*tokenizer.encode(ANSWER), tokenizer.convert_tokens_to_ids("<|im_end|>")]
        [self._filler] = tokenizer.encode(" the")[:1]

    async def generate(self, tokens: int, *, last: bool) -> Output:
        """Generate one turn of ``tokens`` ids; the ``last`` one answers."""
        async with self._slots:
            await asyncio.sleep(tokens * TOKEN_SECONDS * self._scale)
        end = self._answer if last else self._call
        ids = [self._filler] * max(0, tokens - len(end)) + end
        return Output(ids, [-1.0] * len(ids))
