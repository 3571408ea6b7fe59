"""One real run of verl with the tiny model: the metrics arrive, and the alarm ends the run.

The checkpoint that it leaves is served by vLLM and evaluated by VLMEvalKit, beside the run.

Random weights, a real sandbox, verl's own command. ``busy_agent.py`` gives up its tools at step 3.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText, AutoTokenizer

from deepeyes_plugins.protocol.dialect import DEEPEYES_V2
from deepeyes_plugins.quickstart.datasets import write_rl
from deepeyes_plugins.quickstart.process import OFFLINE
from deepeyes_plugins.quickstart.task import split_examples
from deepeyes_plugins.rollout.log import read_log
from tests.vlmevalkit.conftest import write_table

ROOT = Path(__file__).parents[2]
GROUP = 2
BATCH = 2
GIVES_UP_AT = 3
"""Training step."""


@dataclass
class Run:
    folder: Path
    exit_status: int
    output: str

    @cached_property
    def metrics(self) -> dict[int, dict[str, float]]:
        """What verl's file logger got, by step."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps: dict[int, dict[str, float]] = {}
        for line in map(json.loads, lines):
            steps.setdefault(line["step"], {}).update(line["data"])
        return steps

    @cached_property
    def board(self) -> list[dict[str, Any]]:
        lines = (self.folder / "board/rollouts.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def write_questions(path: Path, count: int, split: str, sources: tuple[str, ...]) -> None:
    """Numbered questions for the busy agent, their data sources in turn."""
    write_rl(split_examples("train", count), path, split)
    table = pq.read_table(path)
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        row["env_name"] = "busy"
        row["data_source"] = sources[number % len(sources)]
        row["extra_info"]["index"] = str(number)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def install_plugin(folder: Path) -> None:
    """What pip would leave in ``folder``, which is on the path."""
    (folder / "busy_agent.py").write_bytes((Path(__file__).parent / "busy_agent.py").read_bytes())
    metadata = folder / "busy_agent-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: busy-agent\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[deepeyes_plugins]\nbusy_agent = busy_agent\n")


def write_decided_model(source: Path, folder: Path) -> None:
    """Write a model that is sure of what it says and gives no weight to what engines mask.

    Engines mask forbidden tokens and the ids behind the tokenizer's last one, so that their
    probabilities are those of the actor only where these have none.
    """
    shutil.copytree(source, folder)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        head = model.lm_head.weight.mul_(5)
        head[tokenizer.convert_tokens_to_ids(list(DEEPEYES_V2.forbidden))] = 0
        head[len(tokenizer) :] = 0
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    plugins = folder / "plugins"
    plugins.mkdir()
    install_plugin(plugins)
    write_questions(folder / "data/train.parquet", 16, "train", ("busy-a", "busy-b"))
    write_questions(folder / "data/heldout.parquet", 2, "heldout", ("busy-a",))
    write_decided_model(tiny_model, folder / "sft")
    write_table(folder / "tables", {"red": ("which colour?", "red"), "blue": ("and here?", "no")})
    tiny = ROOT / "recipes/tiny"
    command = [
        *(sys.executable, "-m", "verl.trainer.main_ppo"),
        *("--config-path", str(ROOT / "recipes/tiny"), "--config-name", "rl"),
        f"deepeyes.run={folder}",
        f"deepeyes.agent_config={ROOT / 'recipes/tiny/agent.yaml'}",
        "deepeyes.turn_tokens=40",
        f"deepeyes.logging_board={folder / 'board'}",
        "deepeyes.alarm={enabled: true, stop: true, window: 1}",
        f"data.train_batch_size={BATCH}",
        "data.max_response_length=1024",
        "data.shuffle=false",
        f"actor_rollout_ref.rollout.n={GROUP}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={BATCH}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "actor_rollout_ref.rollout.calculate_log_probs=true",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
        "algorithm.rollout_correction.bypass_mode=false",
        "trainer.logger=[console,file,tensorboard]",
        "trainer.checkpoint_callback_class="
        "deepeyes_plugins.hosts.verl.checkpoint_evaluation.EvaluateCheckpoints",
        "deepeyes.evaluation={"
        f"arguments: [--config, {tiny}/eval.json, --agent, {tiny}/agent.yaml], "
        f"serve: 'vllm serve {{model}} --config {tiny}/serve.yaml --port {{port}}', "
        f"environment: {{LMUData: {folder}/tables, OMP_NUM_THREADS: '1'}}}}",
        "trainer.total_training_steps=8",
        "trainer.save_freq=8",
        "trainer.test_freq=8",
        # Sockets have short paths only.
        f"+ray_kwargs.ray_init._temp_dir={tempfile.mkdtemp(prefix='ray-')}",
    ]
    variables = {
        "DEEPEYES_TRAJECTORIES": str(folder / "trajectories"),
        "PYTHONPATH": os.pathsep.join([str(plugins), str(ROOT)]),
        "RAY_worker_niceness": "0",
        "TENSORBOARD_DIR": str(folder / "tensorboard"),
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
    }
    finished = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **OFFLINE, **variables},
        cwd=folder,
        timeout=900,
        check=False,
    )
    (folder / "output.log").write_text(finished.stdout, encoding="utf-8")
    return Run(folder, finished.returncode, finished.stdout)


def test_figures_of_each_data_source_arrive_in_the_file_logger(run: Run) -> None:
    assert sorted(run.metrics) == [0, 1, 2, 3], run.output[-5000:]
    for step in (1, 2):
        metrics = run.metrics[step]
        for source in ("busy-a", "busy-b", "all"):
            figures = {
                name.removeprefix(f"deepeyes/{source}/"): value
                for name, value in metrics.items()
                if name.startswith(f"deepeyes/{source}/")
            }
            assert figures["samples"] == (BATCH * GROUP if source == "all" else GROUP)
            assert figures["tool_calls/python"] == figures["tool_calls/total"] == 2
            assert figures["tool_success/python"] == figures["tool_error/python"] == 0.5
            assert figures["turns/mean"] == 3
            assert figures["end/answer"] == 1
            assert figures["end/infrastructure"] == 0
            assert 0 < figures["tool_seconds/python/p50"] <= figures["tool_seconds/python/p99"]
            assert figures["judge/judged"] == 1
            assert figures["judge/calls"] == figures["judge/cache_hits"] == 0.5
            assert figures["judge_seconds/p50"] == figures["judge_seconds/p99"] == 0.5
        assert metrics["deepeyes/samples_left_out"] == 0


def test_figures_of_a_step_are_those_of_its_trajectories(run: Run) -> None:
    played = [one for one in read_log(run.folder / "trajectories") if one.labels.get("step") == 1]
    trained = [one for one in played if one.labels["split"] == "train"]
    tokens = [sum(turn.tokens for turn in one.turns) for one in trained]
    figures = run.metrics[1]
    assert figures["deepeyes/all/reward/score"] == pytest.approx(figures["critic/score/mean"])
    assert figures["deepeyes/all/reward/score"] == pytest.approx(sum(tokens) / len(tokens) / 64)
    lengths: dict[str, set[int]] = {}
    for one, count in zip(trained, tokens, strict=True):
        lengths.setdefault(one.task_id, set()).add(count)
    same = [len(found) == 1 for found in lengths.values()]
    assert figures["deepeyes/groups_without_spread"] == sum(same) / len(same)
    assert len(trained) == BATCH * GROUP
    assert figures["deepeyes/all/generated_tokens/mean"] == pytest.approx(sum(tokens) / len(tokens))
    assert figures["deepeyes/all/response_tokens/mean"] == pytest.approx(
        figures["response_length/mean"]
    )


def test_vllm_and_the_actor_agree_also_after_an_update(run: Run) -> None:
    """Weights that were not sent would show: an update at this rate changes many tokens."""
    assert run.metrics[1]["actor/grad_norm"] > 0
    for step in (1, 2, 3):
        assert abs(run.metrics[step]["rollout_corr/log_ppl_diff"]) <= 1e-4
        assert run.metrics[step]["training/rollout_probs_diff_mean"] <= 1e-4


def test_figures_of_the_validation_arrive_too(run: Run) -> None:
    figures = run.metrics[0]
    assert figures["deepeyes_val/busy-a/samples"] == 2
    assert figures["deepeyes_val/busy-a/tool_calls/python"] == 2


def test_other_loggers_get_the_same(run: Run) -> None:
    name = "deepeyes/all/tool_calls/python"
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars(name)] == [(1, 2), (2, 2), (3, 0)]
    assert f"{name}:2.0" in run.output


def test_the_logging_board_has_each_step_token_by_token(run: Run) -> None:
    assert [line["step"] for line in run.board] == [
        step for step in (1, 2, 3) for _ in range(BATCH * GROUP)
    ]
    scores = [line["reward"] for line in run.board if line["step"] == 1]
    assert sum(scores) / len(scores) == pytest.approx(
        run.metrics[1]["deepeyes/all/reward/score"], abs=1e-5
    )
    for line in run.board:
        tokens = len(line["response_tokens"])
        assert tokens == len(line["logprobs"]) == len(line["token_rewards"])
        assert sum(line["token_rewards"]) == pytest.approx(line["reward"])
        assert line["ground_truth"] in ("red", "green", "blue", "yellow")
        chosen = zip(line["logprobs"], line["response_mask"], strict=True)
        assert all(log_prob < 0 for log_prob, generated in chosen if generated)
    busy = run.board[0]
    assert "Code execution result" in busy["response"]
    assert busy["prompt"].count("<|image_pad|>") == 1


def test_the_alarm_ends_the_run_with_a_checkpoint_of_the_last_step(run: Run) -> None:
    assert run.metrics[GIVES_UP_AT]["deepeyes/all/tool_calls/python"] == 0
    assert "interaction collapse at step 3" in run.output
    assert "RunStoppedError" in run.output
    assert run.exit_status != 0
    newest = run.folder / "rl/latest_checkpointed_iteration.txt"
    assert newest.read_text() == str(GIVES_UP_AT)
    assert any((run.folder / f"rl/global_step_{GIVES_UP_AT}/actor").iterdir())


def test_the_checkpoint_is_evaluated_and_its_score_is_among_the_metrics(run: Run) -> None:
    folder = run.folder / f"rl/evaluations/global_step_{GIVES_UP_AT}"
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "succeeded", (folder / "log.txt").read_text()[-3000:]
    score = result["scores"]["DeepEyesQuickstart"]
    assert 0 <= score <= 100
    metrics = run.metrics[GIVES_UP_AT]
    assert metrics["deepeyes_eval/DeepEyesQuickstart"] == score
    assert metrics["deepeyes_eval/step"] == GIVES_UP_AT
    evaluated = list(read_log(folder / "trajectories"))
    assert len(evaluated) == 2
    for one in evaluated:  # The settings are those of the recipe.
        assert one.prompt[0].parts[0].text == "Use code to zoom in, then answer."
        assert all(0 < turn.tokens <= 80 for turn in one.turns)
    assert not any(one.labels.get("split") for one in evaluated)
