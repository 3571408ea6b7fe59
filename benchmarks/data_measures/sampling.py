"""`synthesize` and `filter` against the ideal, with a stub of 1 s latency and 64 in flight.

The tools are real: a sandbox session for each trajectory, whose code crops the question's image of
448 x 448 pixels. Rules judge. The ideal is the time that the stub sleeps, divided by 64; ours runs
from the first read of the parquet file to the last score on disk, the start of the sandbox
included; the details have the share from the 64th score on, too, which leaves the start out. The
stub is a process of its own on the same machine.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from reporting.measures import Figure
from stubs import chat_stub

from deepeyes_plugins.hosts.openai import OpenAISettings, ServedModel
from deepeyes_plugins.quickstart.datasets import write_rl
from deepeyes_plugins.quickstart.task import split_examples
from deepeyes_plugins.selection.filtering import VARIANTS
from deepeyes_plugins.selection.questions import read_questions
from deepeyes_plugins.selection.sampling import Sampling, Variant
from deepeyes_plugins.settings import AgentSettings

IN_FLIGHT = 64
LATENCY = 1.0


def synthesize(quick: bool) -> Figure:
    """Two turns each, one of them with code."""
    return _measure("synthesize", [Variant("teacher")], 2, 128 if quick else 1280)


def filter_questions(quick: bool) -> Figure:
    """Two turns with tools, one without."""
    return _measure("filter", VARIANTS, 3, 64 if quick else 640)


def _measure(name: str, variants: Sequence[Variant], turns: int, questions: int) -> Figure:
    with chat_stub(LATENCY, tool_turns=1) as url, tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.parquet"
        write_rl(split_examples("train", questions), data, "train")
        sampling = Sampling(
            AgentSettings(),
            ServedModel(OpenAISettings(url=url)),
            Path(folder) / "work",
            variants,
            1,
            concurrency=IN_FLIGHT,
        )
        scored: list[float] = []
        started = time.perf_counter()
        sampled = asyncio.run(
            sampling.run(
                partial(read_questions, [data], "deepeyes_v2"),
                questions,
                lambda done, total: scored.append(time.perf_counter()),
            )
        )
        seconds = time.perf_counter() - started
    if sampled.failures:
        raise RuntimeError(sampled.failures[0])
    ideal = questions * turns * LATENCY / IN_FLIGHT
    played = len(sampled.records)
    later = ideal * (played - IN_FLIGHT) / played / (scored[-1] - scored[IN_FLIGHT])
    return Figure(
        f"{name}, share of the ideal throughput (stub of 1 s, 64 in flight, real sandbox)",
        ideal / seconds,
        "x",
        0.9,
        {
            "seconds": seconds,
            "ideal [s]": ideal,
            "trajectories": played,
            "share from the 64th score on": later,
        },
    )
