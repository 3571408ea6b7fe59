"""GRPO steps of the tiny model: the ``deepeyes`` loop against verl's stock ``tool_agent`` loop.

Both run ``verl.trainer.main_ppo`` with recipes/tiny/rl.yaml on the same rows, the same data set
class and the same reward entry, with a stub tool that answers at once. To make both generate the
same number of tokens, the checkpoint's ``generation_config.json`` has a ``sequence_bias`` that
makes one text near certain after every ``<|im_start|>assistant``: a thought and a tool call, three
turns of it (the turn limit of either loop ends the trajectory). The model still computes every
token. Our loop writes ``<think>`` itself and stops at the tag; the stock loop writes nothing and
lets the model generate ``<|im_end|>`` as well, so its thought is a token shorter.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow
import yaml
from pyarrow import parquet
from transformers import AutoTokenizer

from deepeyes_plugins.quickstart.datasets import write_rl
from deepeyes_plugins.quickstart.process import Process, run
from deepeyes_plugins.quickstart.task import split_examples, task_texts
from deepeyes_plugins.quickstart.tiny_model import make_tiny_qwen2_5_vl
from rollouts import stub

TURNS = 3
OPENING = {"deepeyes": "<|im_start|>assistant\n<think>", "tool_agent": "<|im_start|>assistant\n"}
TURN = f"The dot is there.</think>\n{stub.CALL}"
CERTAIN = 1e4
"""Added to a logit; those of the random model are within ±10."""

WARM_UP = 2
"""First steps of a run that are left out: verl's workers import and allocate in them."""

LOOPS = ("deepeyes", "tool_agent")
BENCHMARKS = Path(__file__).parents[1]
RECIPES = BENCHMARKS.parent / "recipes"


@dataclasses.dataclass(frozen=True)
class Steps:
    """What a run of one loop took.

    Attributes:
        seconds: Of each step after the first two.
        rollout_seconds: The part of each that generates.
        response_tokens: Mean length of a response, observations included.
        turns: Mean number of chat turns.
    """

    seconds: list[float]
    rollout_seconds: list[float]
    response_tokens: float
    turns: float


def measure(folder: Path, *, steps: int, rounds: int = 1) -> dict[str, Steps]:
    """Run both loops, one after the other, ``rounds`` times.

    Args:
        folder: Receives model, data and logs.
        steps: Steps of a run, the first two of which do not count.
        rounds: How often; the order changes each time.

    Raises:
        StageError: A run failed; its log is named.
    """
    prepare(folder, rows=16 * steps)
    found: dict[str, list[Steps]] = {loop: [] for loop in LOOPS}
    for at in range(rounds):
        for loop in LOOPS if at % 2 == 0 else reversed(LOOPS):
            found[loop].append(train(folder, loop, steps, f"{loop}_{at}"))
    return {loop: _joined(runs) for loop, runs in found.items()}


def prepare(folder: Path, rows: int) -> None:
    """Write the model, whose words are certain, the rows and the settings."""
    model = folder / "model"
    make_tiny_qwen2_5_vl(model, [*task_texts(), stub.CALL, "dot " * 12])
    for loop in LOOPS:
        path = folder / f"{loop}.parquet"
        write_rl(split_examples("train", rows), path, "train")
        table = parquet.read_table(path)
        column = table.schema.get_field_index("agent_name")
        table = table.set_column(column, "agent_name", pyarrow.array([loop] * rows))
        parquet.write_table(table, path)
    settings = {
        "environment": "deepeyes_v2",
        "tools": {"deepeyes_v2": [stub.NAME]},
        "limits": {"turns": TURNS},
    }
    (folder / "agent.yaml").write_text(yaml.safe_dump(settings))
    plugin = folder / "plugin" / "rollout_benchmark-0.dist-info"
    plugin.mkdir(parents=True, exist_ok=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: rollout-benchmark\nVersion: 0\n")
    (plugin / "entry_points.txt").write_text("[deepeyes_plugins]\nstub = rollouts.stub\n")


def make_certain(model: Path, loop: str) -> None:
    """Let the model say the same in every turn, in as many tokens for either loop."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    opening, turn = tokenizer.encode(OPENING[loop]), tokenizer.encode(TURN)
    if loop == "tool_agent":
        turn = [*turn[1:], tokenizer.convert_tokens_to_ids("<|im_end|>")]
    script = opening + turn
    path = model / "generation_config.json"
    generation = json.loads(path.read_text())
    generation["sequence_bias"] = [
        [script[: at + 1], CERTAIN] for at in range(len(opening), len(script))
    ]
    path.write_text(json.dumps(generation))


def train(folder: Path, loop: str, steps: int, name: str) -> Steps:
    """Run verl with one of the loops.

    Raises:
        StageError: It failed; its log is named.
    """
    make_certain(folder / "model", loop)
    metrics = folder / f"{name}.jsonl"
    metrics.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        "--config-path",
        str(RECIPES / "tiny"),
        "--config-name",
        "rl",
        f"deepeyes.run={folder}",
        f"deepeyes.agent_config={folder / 'agent.yaml'}",
        "deepeyes.turn_tokens=128",
        f"data.train_files={folder / loop}.parquet",
        f"data.val_files={folder / loop}.parquet",
        "data.max_prompt_length=256",
        "data.max_response_length=512",
        f"actor_rollout_ref.model.path={folder / 'model'}",
        f"actor_rollout_ref.rollout.agent.default_agent_loop={loop}",
        "actor_rollout_ref.rollout.multi_turn.format=hermes",
        f"actor_rollout_ref.rollout.multi_turn.max_assistant_turns={TURNS}",
        "actor_rollout_ref.rollout.multi_turn.function_tool_path="
        + str(BENCHMARKS / "rollouts/stub_for_verl.py"),
        f"trainer.total_training_steps={steps}",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        f"trainer.default_local_dir={folder / name}",
    ]
    paths = [str(BENCHMARKS.parent), str(BENCHMARKS), str(folder / "plugin")]
    environment = {
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "PYTHONPATH": ":".join(paths),
        "RAY_worker_niceness": "0",
    }
    process = Process(command, folder / f"{name}.log", environment)
    run([process], lambda: None, limit=1200)
    lines = [json.loads(line)["data"] for line in metrics.read_text().splitlines()]
    lines = [line for line in lines if "timing_s/step" in line][WARM_UP:]
    if not lines:
        raise process.failure("left no step times")

    def column(key: str) -> list[float]:
        return [float(line[key]) for line in lines if key in line]

    return Steps(
        column("timing_s/step"),
        column("timing_s/gen"),
        median(column("response_length/mean") or [0.0]),
        median(column("num_turns/mean") or [0.0]),
    )


def _joined(runs: list[Steps]) -> Steps:
    return Steps(
        [seconds for one in runs for seconds in one.seconds],
        [seconds for one in runs for seconds in one.rollout_seconds],
        median(one.response_tokens for one in runs),
        median(one.turns for one in runs),
    )


def main() -> Any:
    """For a run of this part alone: ``python -m rollouts.step FOLDER STEPS``."""
    folder, steps = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    for loop, found in measure(folder, steps=steps).items():
        print(loop, median(found.seconds), found)


if __name__ == "__main__":
    main()
