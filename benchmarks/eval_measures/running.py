"""Throughput and memory of an evaluation, driven as VLMEvalKit drives it.

Each runs in an interpreter of its own (`driver.py`): VLMEvalKit's `infer_data_api`, which its
run.py calls, with its thread pool and its checkpoint after every sample, over the adapter. Images
are of 448 x 448 pixels, trajectories are logged. The start is apart: imports, a first sample, which
starts the sandbox, and the images, which VLMEvalKit writes before it asks anything. The stub is a
process of its own on the same machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from reporting.measures import Figure
from stubs import CODE, ZOOM, chat_stub

THREADS = 64
LATENCY = 2.0
TURNS = 3


def throughput(quick: bool) -> Figure:
    """Two of three turns run code in a real sandbox, in a session for each sample."""
    return _throughput("real sandbox", "deepeyes_v2", CODE, 128 if quick else 768)


def throughput_of_a_cheap_tool(quick: bool) -> Figure:
    """Two of three turns crop the image in the process itself: what the adapter costs."""
    return _throughput("image_zoom_in_tool", "visual_toolbox_v2", ZOOM, 128 if quick else 768)


def memory(quick: bool) -> Figure:
    """Growth of the resident memory from the 1,000th to the 5,000th sample; no latency."""
    marks = (100, 500) if quick else (1000, 5000)
    answer = _drive("visual_toolbox_v2", ZOOM, 0.0, marks)
    first, last = (answer[f"resident after {mark} [MB]"] for mark in marks)
    return Figure(
        f"resident memory at {marks[1]:,} samples over {marks[0]:,} "
        f"({TURNS} turns, image_zoom_in_tool, {THREADS} threads)",
        last / first,
        "x",
        1.05,
        answer,
        at_most=True,
    )


def _throughput(tool: str, environment: str, call: str, samples: int) -> Figure:
    answer = _drive(environment, call, LATENCY, (samples,))
    ideal = samples * TURNS * LATENCY / THREADS
    return Figure(
        f"share of the ideal throughput (stub of {LATENCY:g} s, {TURNS} turns, {THREADS} threads, "
        f"{tool})",
        ideal / answer["seconds"],
        "x",
        0.9,
        {**answer, "ideal [s]": ideal},
    )


def _drive(environment: str, call: str, latency: float, marks: tuple[int, ...]) -> dict[str, float]:
    """Evaluate as many samples as the last of `marks` says; the driver's figures."""
    with (
        tempfile.TemporaryDirectory() as folder,
        chat_stub(latency, TURNS - 1, call) as url,
    ):
        (Path(folder) / "agent.yaml").write_text(f"environment: {environment}\n")
        variables = {
            "LMUData": folder,
            "DEEPEYES_AGENT_CONFIG": f"{folder}/agent.yaml",
            "DEEPEYES_TRAJECTORIES": f"{folder}/trajectories",
            "DEEPEYES_OPENAI_URL": url,
        }
        driver = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("driver.py")), str(THREADS)]
            + [str(mark) for mark in marks],
            env={**os.environ, **variables},
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    answer: dict[str, float] = json.loads(driver.stdout.splitlines()[-1])
    return answer
