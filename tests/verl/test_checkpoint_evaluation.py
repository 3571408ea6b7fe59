"""Evaluation of checkpoints in processes beside the run; ``test_training_run.py`` has a whole one.

What VLMEvalKit would leave is written by small commands here.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hydra import compose, initialize_config_dir

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.hosts.verl.checkpoint_evaluation import (
    RESULT_FILE,
    EvaluateCheckpoints,
    EvaluationSettings,
    command_of,
)

RECIPE = Path(__file__).parents[2] / "recipes/tiny"
WAITS = """
import pathlib, sys, time
output = pathlib.Path(sys.argv[1])
(output / "started").touch()
while not (output.parent / "go").exists():
    time.sleep(0.02)
"""
Make = Callable[..., EvaluateCheckpoints]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[EvaluateCheckpoints] = []

    def callback(*overrides: str, **evaluation: Any) -> EvaluateCheckpoints:

        own = [f"deepeyes.run={tmp_path}"]
        with initialize_config_dir(str(RECIPE), version_base=None):
            config = compose("rl", overrides=[*own, *overrides])
        if evaluation:
            config.deepeyes.evaluation = evaluation
        made.append(EvaluateCheckpoints(config))
        return made[-1]

    yield callback
    for one in made:
        one.close(0)


def waiting(folder: Path) -> list[str]:
    """A command that runs until the file ``go`` is there."""
    script = folder / "waits.py"
    script.write_text(WAITS)
    return [sys.executable, str(script), "{output}"]


def save(callback: EvaluateCheckpoints, tmp_path: Path, step: int, **context: Any) -> Path:
    """What the trainer does after a checkpoint; returns the folder of its evaluation."""
    checkpoint = tmp_path / f"rl/global_step_{step}"
    callback.on_save(trainer=None, global_step=step, checkpoint_dir=str(checkpoint), **context)
    return tmp_path / f"rl/evaluations/global_step_{step}"


def until(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status(folder: Path) -> str:
    until(folder / RESULT_FILE)
    return str(json.loads((folder / RESULT_FILE).read_text())["status"])


def test_the_run_goes_on_and_the_next_checkpoint_waits_for_its_turn(
    tmp_path: Path, make: Make
) -> None:
    callback = make(command=waiting(tmp_path))
    first, second = (save(callback, tmp_path, step) for step in (1, 2))
    until(first / "started")
    assert not (second / "started").exists()
    assert callback.metrics() == {}
    (first.parent / "go").touch()
    callback.close()
    assert (status(first), status(second)) == ("succeeded", "succeeded")


def test_a_checkpoint_may_be_skipped_while_another_is_evaluated(tmp_path: Path, make: Make) -> None:
    callback = make(command=waiting(tmp_path), when_busy="skip", concurrent=2)
    folders = [save(callback, tmp_path, step) for step in (1, 2, 3)]
    assert status(folders[2]) == "skipped"
    (folders[0].parent / "go").touch()
    callback.close()
    assert [status(folder) for folder in folders[:2]] == ["succeeded", "succeeded"]


def test_a_newer_checkpoint_may_replace_an_older_one(tmp_path: Path, make: Make) -> None:
    callback = make(command=waiting(tmp_path), when_busy="replace")
    first = save(callback, tmp_path, 1)
    until(first / "started")
    second = save(callback, tmp_path, 2)
    assert status(first) == "stopped"
    until(second / "started")
    (first.parent / "go").touch()
    callback.close()
    assert status(second) == "succeeded"


def test_what_is_left_after_the_final_wait_is_stopped(tmp_path: Path, make: Make) -> None:
    callback = make(command=waiting(tmp_path), final_wait=0.1)
    first, second = (save(callback, tmp_path, step) for step in (1, 2))
    until(first / "started")
    callback.close()
    assert (status(first), status(second)) == ("stopped", "stopped")
    assert not [one for one in psutil.Process().children() if "waits.py" in str(one.cmdline())]


@pytest.mark.parametrize(
    ("command", "context", "says"),
    [
        ([sys.executable, "-c", "raise SystemExit(3)"], {}, "evaluation of step 7: failed"),
        (["no-such-program"], {}, "evaluation of step 7 failed: FileNotFoundError"),
        ([sys.executable], {"async_save": True}, "step 7 is not evaluated: its checkpoint is"),
    ],
)
def test_a_failure_is_a_warning(
    tmp_path: Path,
    make: Make,
    caplog: pytest.LogCaptureFixture,
    command: list[str],
    context: dict[str, bool],
    says: str,
) -> None:
    callback = make(command=command)
    save(callback, tmp_path, 7, future_argument_of_verl=1, **context)
    callback.close()
    assert says in caplog.text
    assert callback.metrics() == {}
    assert {one.levelno for one in caplog.records} == {logging.WARNING}


def test_a_checkpoint_is_served_on_the_resources_that_were_named() -> None:
    settings = EvaluationSettings(
        benchmarks=["VStarBench", "ChartQA_TEST"], arguments=["--agent", "agent.yaml"]
    )
    command = command_of(settings, 4, Path("/run/global_step_4"), Path("/out"))
    assert command[5:8] == [
        "run",
        "--serve",
        "vllm serve /run/global_step_4/actor/huggingface --port {port} --generation-config vllm",
    ]
    assert command[8:] == [
        *("--trajectories", "/out/trajectories", "--work-dir", "/out"),
        *("--agent", "agent.yaml", "--data", "VStarBench", "ChartQA_TEST"),
    ]


@pytest.mark.parametrize(
    ("overrides", "evaluation", "says"),
    [
        ([], {}, "no section deepeyes.evaluation: name benchmarks"),
        ([], {"when_busy": "panic"}, "deepeyes.evaluation.when_busy: Input should be 'queue'"),
        (
            ["actor_rollout_ref.actor.checkpoint.save_contents=[model]"],
            {"benchmarks": ["VStarBench"]},
            "add hf_model to actor_rollout_ref.actor.checkpoint.save_contents",
        ),
    ],
)
def test_wrong_settings_are_said_before_gpus_are_taken(
    make: Make, overrides: list[str], evaluation: dict[str, Any], says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        make(*overrides, **evaluation)
