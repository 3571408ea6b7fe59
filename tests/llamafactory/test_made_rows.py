"""Rows made by a teacher, and rows of a training log, train the tiny model."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from deepeyes_plugins.quickstart.datasets import write_rl
from deepeyes_plugins.quickstart.task import answer_turn, crop_turn, split_examples
from deepeyes_plugins.rollout.log import FILE_NAME
from tests.cli.test_cli import deepeyes
from tests.llamafactory.conftest import train, train_arguments
from tests.openai.server import Body, ChatServer, Reply, text_of

COUNT = 4


def as_logged_in_training(log: Path, folder: Path) -> Path:
    """The same trajectories as a training logs them: known by data source and task id alone."""
    shutil.copytree(log, folder)
    lines = [json.loads(line) for line in (folder / FILE_NAME).read_text().splitlines()]
    for line in lines:
        line["labels"] = {"step": 1, "session": 0, "split": "train"}
    (folder / FILE_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_loss_falls_on_rows_of_a_teacher_and_of_a_training_log(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    data, made = tmp_path / "train.parquet", tmp_path / "made"
    write_rl(split_examples("train", COUNT), data, "train")
    truths = {
        base64.b64encode(row["images"][0]["bytes"]).decode(): row["reward_model"]["ground_truth"]
        for row in pq.read_table(data).to_pylist()
    }

    def teacher(body: Body) -> Reply:
        if not text_of(body["messages"][-1]["content"]).startswith("Code execution result:"):
            return Reply(crop_turn(0).removesuffix("</code>"))
        shown = json.dumps(body)
        return Reply(answer_turn(next(truths[image] for image in truths if image in shown)))

    with ChatServer(teacher) as server:
        answer = deepeyes(
            *("data", "synthesize", str(data), "-o", str(made), "--name", "taught"),
            *("--url", server.url),
        )
    assert answer.returncode == 0, answer.stderr
    log = as_logged_in_training(made / "work", tmp_path / "log")
    answer = deepeyes(
        *("data", "from-trajectories", str(log), "--data", str(data), "-o", str(made), "--json"),
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["rows"] == COUNT

    arguments: dict[str, Any] = train_arguments(tiny_model_path, made, made, tmp_path / "out") | {
        "dataset": "taught,rejection_sampled",
        "max_steps": 8,
        "learning_rate": 1e-2,
    }
    run = train(arguments, tmp_path / "sft.yaml")
    assert run.returncode == 0, run.stderr
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0], losses
