"""``deepeyes eval run`` on upstream's own datasets: killed, failed in part, repaired.

With DEEPEYES_TEST_VLMEVALKIT naming a checkout of upstream, that runs too.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepeyes_plugins.rollout import EndReason
from deepeyes_plugins.rollout.log import read_log
from tests.openai.server import Body, ChatServer, Reply, agent_script, question, text_of
from tests.vlmevalkit.official import CHARTS, CHOICES, MATHS, write_recipe, write_tables

CHECKOUT = os.environ.get("DEEPEYES_TEST_VLMEVALKIT")
BUILDS = [None, *([CHECKOUT] if CHECKOUT else [])]
ANSWERS = {
    "choice-": "B",
    "chart-0": "42",
    "chart-1": "1998",
    "math-0": "It is forty-two.",
    "math-1": "41",
}
BROKEN = ("chart-1", "math-1")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(params=BUILDS, ids=lambda checkout: "checkout" if checkout else "installed")
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Start:
    """Starts ``deepeyes eval run`` in a process group of its own."""
    checkout = ["--checkout", request.param] if request.param else []

    def run(*arguments: str, url: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "deepeyes_plugins.cli", "eval", "run", *checkout),
                *("--trajectories", str(tmp_path / "log"), *arguments),
                *("--work-dir", str(tmp_path / "out")),
            ],
            cwd=tmp_path,
            env={**os.environ, "LMUData": str(tmp_path / "data"), "DEEPEYES_OPENAI_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return run


def finish(process: subprocess.Popen[str], timeout: float = 240) -> tuple[int, str]:
    said, _ = process.communicate(timeout=timeout)
    return process.returncode, said


def judge(body: Body) -> Reply:
    """Reads a number out of what a model has said; says hello to VLMEvalKit's test."""
    asked = text_of(body["messages"][-1]["content"])
    return Reply("42" if "forty-two" in asked else "hello")


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """The metrics by dataset, from the newest status file."""
    newest = max(folder.rglob("status.json"), key=lambda path: path.resolve().stat().st_mtime_ns)
    datasets = json.loads(newest.read_text())["datasets"]
    return {name: entry.get("metrics", {}) for name, entry in datasets.items()}


def stopped_with(least: int, process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """Stop a run that has written at least so many answers, and return them.

    VLMEvalKit rewrites the file in place after each sample: it may be stopped within that.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        os.killpg(process.pid, signal.SIGSTOP)
        for checkpoint in folder.rglob("*_checkpoint.pkl"):
            with contextlib.suppress(EOFError, pickle.UnpicklingError):
                answers: dict[str, Any] = pickle.loads(checkpoint.read_bytes())
                if len(answers) >= least:
                    return answers
        os.killpg(process.pid, signal.SIGCONT)
    pytest.fail(f"there are fewer than {least} answers")


def test_a_run_that_is_killed_fails_in_part_and_is_repaired(tmp_path: Path, start: Start) -> None:
    write_tables(tmp_path / "data")
    recipe = write_recipe(tmp_path / "recipe.json")
    worse = write_recipe(
        tmp_path / "worse.json", Nowhere={"class": "OCRBench_of_nobody", "dataset": "Nowhere"}
    )
    agent = agent_script(ANSWERS)
    never, all_asked = threading.Event(), threading.Event()
    running = "killed"

    def script(body: Body) -> Reply:
        if running == "killed":
            if question(body).startswith("Question: " + CHOICES[-1]):
                all_asked.set()
            if CHOICES[0] in question(body):
                return Reply(until=never)
        if running == "failing" and any(name in question(body) for name in BROKEN):
            return Reply(status=503, body="overloaded")
        return agent(body)

    def asked(since: int) -> set[str]:
        known = [*CHOICES, *CHARTS, *MATHS]
        return {name for body in model.requests[since:] for name in known if name in question(body)}

    with ChatServer(script) as model, ChatServer(judge) as referee:
        judged = ["--judge-base-url", referee.url, "--judge", "tiny", "--judge-key", "secret"]

        process = start("--config", str(recipe), "--api-nproc", "4", url=model.url)
        assert all_asked.wait(240), finish(process)
        answered = {CHOICES[int(index)] for index in stopped_with(3, process, tmp_path / "out")}
        os.killpg(process.pid, signal.SIGKILL)
        finish(process)
        never.set()
        (checkpoint,) = (tmp_path / "out").rglob("*_checkpoint.pkl")

        # Killed in the middle of a pickle: this one would make MathVista fail.
        half = checkpoint.with_name("DeepEyesV2_MathVista_small_tiny.pkl")
        half.write_bytes(checkpoint.read_bytes()[:-1])

        running, before = "failing", len(model.requests)
        code, said = finish(
            start(*("--config", str(worse), "--reuse", "--api-nproc", "32", *judged), url=model.url)
        )
        # What was answered before the kill is not repeated.
        assert asked(before) == {*CHOICES, *CHARTS, *MATHS} - answered, said
        assert CHOICES[0] not in answered
        assert code == 1
        assert "failed: DeepEyesV2 on Nowhere" in said and "3 of 4 datasets succeeded" in said
        for name in ("ChartQA_small", "MathVista_small"):
            assert f"1 failed sample: DeepEyesV2 on {name}" in said
        assert half.with_name(f"{half.name}.broken").exists()
        first = results(tmp_path / "out")
        assert first["VStarBench_small"]["split=none|Overall"] == 1
        assert first["ChartQA_small"]["Overall"] == 50
        assert first["MathVista_small"]["Task&Skill=Overall|acc"] == 50

        running, before = "repaired", len(model.requests)
        code, said = finish(start("--config", str(recipe), "--reuse", *judged, url=model.url))
        again = {name for name in [*CHARTS, *MATHS] if name.startswith(BROKEN)}
        assert (code, asked(before)) == (0, again), said
        repaired = results(tmp_path / "out")
        assert repaired["ChartQA_small"]["Overall"] == 100
        # Not what the judge had said of the failed sample.
        assert repaired["MathVista_small"]["Task&Skill=Overall|acc"] == 100

    # The judge was asked for what rules could not read.
    assert any("forty-two" in text_of(body["messages"][-1]["content"]) for body in referee.requests)

    by_id = {entry.task_id: entry for entry in read_log(tmp_path / "log")}
    assert set(by_id) == {
        *(f"VStarBench_small/{index}" for index in range(8)),
        *(f"{name}/{index}" for name in ("ChartQA_small", "MathVista_small") for index in (0, 1)),
    }
    shown = by_id["VStarBench_small/3"]
    assert shown.end_reason is EndReason.ANSWER
    assert shown.labels == {"benchmark": "VStarBench_small", "model": "tiny", "index": "3"}
    assert len(shown.question_images) == 1
    for image in shown.question_images:
        assert list((tmp_path / "log" / "images").glob(f"{image}.*"))
