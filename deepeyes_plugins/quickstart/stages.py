"""The stages of the quickstart. Each runs the frameworks' own commands and returns plain values."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepeyes_plugins.quickstart.datasets import write_rl, write_sft, write_vlmevalkit
from deepeyes_plugins.quickstart.engines import ENGINES, Engine
from deepeyes_plugins.quickstart.plan import Plan
from deepeyes_plugins.quickstart.process import Process, StageError, model_servers, run
from deepeyes_plugins.quickstart.task import SYSTEM_PROMPT, split_examples, task_texts
from deepeyes_plugins.rewards.format import is_well_formed
from deepeyes_plugins.rollout import Trajectory
from deepeyes_plugins.rollout.log import FILE_NAME, read_log
from deepeyes_plugins.settings import load_yaml

BENCHMARK = "DeepEyesQuickstart"
LONGEST_STAGE = 3600.0
"""Seconds after which a command is taken for hanging."""

Report = Callable[[int, int], None]
"""Told how many of how many steps are done."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        name: Short name; key of its result.
        title: What it does, for people.
        play: Does it and returns its result.
        seconds: What it took where it was measured, for the estimate of the time left.
    """

    name: str
    title: str
    play: Callable[[Plan, Path, Report], dict[str, Any]]
    seconds: float


def prepare(plan: Plan, recipes: Path, report: Report) -> dict[str, Any]:
    """Make the tiny model and the data, and check that the task cannot be solved without tools."""
    from deepeyes_plugins.quickstart.leakage import load_image_processor, measure_leakage
    from deepeyes_plugins.quickstart.tiny_model import make_tiny_qwen2_5_vl

    del recipes
    shutil.rmtree(plan.folder / "data", ignore_errors=True)
    model = plan.folder / "model"
    make_tiny_qwen2_5_vl(model, task_texts())
    report(1, 5)
    write_sft(split_examples("sft", plan.sft_examples), plan.folder / "data")
    report(2, 5)
    write_rl(split_examples("train", plan.rl_examples), plan.folder / "data/train.parquet", "train")
    report(3, 5)
    write_rl(
        split_examples("heldout", plan.heldout), plan.folder / "data/heldout.parquet", "heldout"
    )
    for name, count in (("vlmevalkit", plan.heldout), ("vlmevalkit-blind", plan.blind)):
        write_vlmevalkit(
            split_examples("heldout", count), plan.folder / "data" / name / f"{BENCHMARK}.tsv"
        )
    report(4, 5)
    leakage = measure_leakage(
        load_image_processor(model),
        split_examples("sft", plan.probe_examples),
        split_examples("heldout", plan.heldout),
    )
    report(5, 5)
    return {
        "demonstrations": plan.sft_examples,
        "questions": plan.rl_examples,
        "heldout": plan.heldout,
        "probe_accuracy_model_view": leakage.whole_picture,
        "probe_accuracy_crop": leakage.right_crop,
    }


def fine_tune(plan: Plan, recipes: Path, report: Report) -> dict[str, Any]:
    """SFT by LLaMA-Factory's own command."""
    output = plan.folder / "sft"
    command = [
        script("llamafactory-cli"),
        "train",
        str(recipes / "tiny/sft.yaml"),
        f"model_name_or_path={plan.folder / 'model'}",
        f"dataset_dir={plan.folder / 'data'}",
        f"output_dir={output}",
    ]
    if plan.sft_steps is not None:
        command += [f"max_steps={plan.sft_steps}", "logging_steps=1"]
    log = output / "trainer_log.jsonl"
    log.unlink(missing_ok=True)

    def progress() -> None:
        last = next(reversed(list(json_lines(log))), None)
        if last:
            report(last["current_steps"], last["total_steps"])

    # Threads that spin while they wait take the processor from the others on a busy machine.
    environment = {"OMP_WAIT_POLICY": "PASSIVE"}
    process = Process(command, plan.folder / "logs/sft.log", environment)
    run([process], progress, limit=LONGEST_STAGE)
    losses = [(line["current_steps"], line["loss"]) for line in json_lines(log) if "loss" in line]
    if not losses:
        raise StageError(f"{log} holds no loss: see {plan.folder / 'logs/sft.log'}")
    return {
        "steps": losses[-1][0],
        "loss_first": losses[0][1],
        "loss_last": losses[-1][1],
        "losses": losses,
    }


def reinforce(plan: Plan, recipes: Path, report: Report) -> dict[str, Any]:
    """GRPO by verl's own command."""
    metrics = plan.folder / "logs/rl_metrics.jsonl"
    trajectories = plan.folder / "rl_trajectories"
    if not (plan.folder / "rl/latest_checkpointed_iteration.txt").exists():
        metrics.unlink(missing_ok=True)
        shutil.rmtree(trajectories, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        "--config-path",
        str((recipes / "tiny").resolve()),
        "--config-name",
        "rl",
        f"deepeyes.run={plan.folder}",
        f"deepeyes.agent_config={recipes / 'tiny/agent.yaml'}",
        f"actor_rollout_ref.rollout.name={plan.engine}",
    ]
    if plan.rl_steps is not None:
        steps = plan.rl_steps
        command += [
            f"trainer.total_training_steps={steps}",
            f"trainer.save_freq={steps}",
            f"trainer.test_freq={steps}",
            "data.train_batch_size=4",
            "actor_rollout_ref.rollout.n=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=2",
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        ]
    environment = {
        "VERL_FILE_LOGGER_PATH": str(metrics.resolve()),
        "DEEPEYES_TRAJECTORIES": str(trajectories.resolve()),
        # Ray makes its workers nice; on two cores they would wait for everything else.
        "RAY_worker_niceness": "0",
    }
    process = Process(command, plan.folder / "logs/rl.log", environment)

    def progress() -> None:
        last = next(reversed(list(json_lines(metrics))), None)
        report(last["step"] if last else 0, plan.rl_steps or recipe_steps(recipes))

    run([process], progress, limit=LONGEST_STAGE)
    lines = {line["step"]: line["data"] for line in json_lines(metrics)}
    validation = "val-core/perception/acc/mean@1"
    accuracies = [(step, data[validation]) for step, data in lines.items() if validation in data]
    rewards = [
        (step, data["critic/score/mean"])
        for step, data in lines.items()
        if "critic/score/mean" in data
    ]
    calls = calls_by_step(read_log(trajectories))
    checkpoint = plan.folder / "rl/latest_checkpointed_iteration.txt"
    if not rewards or not checkpoint.exists():
        raise process.failure("left no rewards or no checkpoint")
    return {
        "steps": rewards[-1][0],
        "reward_first": rewards[0][1],
        "reward_last": rewards[-1][1],
        "rewards": rewards,
        "accuracy_sampled": accuracies,
        "tool_calls": calls,
        "seconds_per_step": [
            data["timing_s/step"] for data in lines.values() if "timing_s/step" in data
        ],
        "infrastructure_errors": sum(
            trajectory.infrastructure_errors for trajectory in read_log(trajectories)
        ),
    }


def evaluate(plan: Plan, recipes: Path, report: Report) -> dict[str, Any]:
    """Serve both models by the engine's own command and evaluate them by VLMEvalKit's."""
    engine = ENGINES[plan.engine]
    folder = plan.folder / "evaluation"
    shutil.rmtree(folder, ignore_errors=True)
    runs = {
        "sft": (plan.folder / "sft", "agent.yaml", "vlmevalkit", plan.heldout),
        "rl": (trained_model(plan), "agent.yaml", "vlmevalkit", plan.heldout),
        "rl_without_sandbox": (
            trained_model(plan),
            "agent_without_tools.yaml",
            "vlmevalkit-blind",
            plan.blind,
        ),
    }
    total = sum(count for *_, count in runs.values())

    def progress() -> None:
        report(sum(count_lines(folder / name / FILE_NAME) for name in runs), total)

    models = list(dict.fromkeys(model for model, *_ in runs.values()))
    with serve(engine, models, recipes, plan.folder / "logs") as urls:
        served = dict(zip(models, urls, strict=True))
        processes = [
            vlmevalkit(
                folder / name, plan, engine, served[model], model, recipes / "tiny" / agent, data
            )
            for name, (model, agent, data, _) in runs.items()
        ]
        run(processes, progress, limit=LONGEST_STAGE)
    return {name: read_evaluation(folder / name) for name in runs}


def serve(
    engine: Engine, models: Sequence[Path], recipes: Path, logs: Path
) -> AbstractContextManager[list[str]]:
    """Running servers of checkpoints, as a context manager that gives their URLs."""
    # The list of models of `transformers serve` scans the hub's cache, which must exist.
    cache = logs / "hub-cache"
    cache.mkdir(parents=True, exist_ok=True)
    commands = {
        logs / f"serve_{number}_{model.name}.log": engine.command(model, recipes, "{port}")
        for number, model in enumerate(models, 1)
    }
    return model_servers(commands, {**engine.server, "HF_HUB_CACHE": str(cache.resolve())})


def vlmevalkit(
    folder: Path,
    plan: Plan,
    engine: Engine,
    url: str,
    model: Path,
    agent_config: Path,
    data: str,
) -> Process:
    """Start one evaluation."""
    command = [
        *(sys.executable, "-m", "vlmeval", "--model", "DeepEyesV2", "--data", BENCHMARK),
        *("--work-dir", str(folder / "work"), "--api-nproc", str(engine.requests)),
    ]
    environment = {
        "LMUData": str((plan.folder / "data" / data).resolve()),
        "DEEPEYES_AGENT_CONFIG": str(agent_config),
        "DEEPEYES_TRAJECTORIES": str(folder.resolve()),
        "DEEPEYES_OPENAI_URL": url,
        "DEEPEYES_OPENAI_MODEL": str(model),
        "DEEPEYES_OPENAI_MAX_TOKENS": "80",
        **engine.client,
        "DEEPEYES_EVAL_SYSTEM_PROMPT": SYSTEM_PROMPT,
        "OMP_NUM_THREADS": "1",
    }
    return Process(command, folder.parent / f"{folder.name}.log", environment)


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Collect VLMEvalKit's score and what the trajectories tell."""
    scores = sorted(folder.glob(f"work/**/*{BENCHMARK}*_acc.csv"))
    if not scores:
        raise StageError(
            f"VLMEvalKit left no score in {folder / 'work'}: see {folder.parent / folder.name}.log"
        )
    with scores[-1].open(encoding="utf-8", newline="") as file:
        score = next(csv.DictReader(file))
    if int(score["failed"]):
        raise StageError(
            f"{score['failed']} samples of {folder.name} failed; {folder / FILE_NAME} tells why"
        )
    trajectories = list(read_log(folder))
    return {
        "accuracy": float(score["Overall"]) / 100,
        "answered": int(score["answered"]),
        **summarize(trajectories),
    }


def summarize(trajectories: list[Trajectory]) -> dict[str, float]:
    """Shares and means over trajectories."""
    count = max(1, len(trajectories))
    return {
        "well_formed": sum(is_well_formed(one.assistant_turns) for one in trajectories) / count,
        "used_sandbox": sum("python" in one.tool_calls for one in trajectories) / count,
        "well_formed_with_sandbox": sum(
            is_well_formed(one.assistant_turns) and "python" in one.tool_calls
            for one in trajectories
        )
        / count,
        "tool_calls": sum(sum(one.tool_calls.values()) for one in trajectories) / count,
        "infrastructure_errors": sum(one.infrastructure_errors for one in trajectories),
    }


def calls_by_step(trajectories: Iterator[Trajectory]) -> list[tuple[int, float]]:
    """Tool calls per training trajectory, by step."""
    calls: dict[int, list[int]] = {}
    for trajectory in trajectories:
        if trajectory.labels.get("split") == "train":
            step = int(trajectory.labels["step"])
            calls.setdefault(step, []).append(sum(trajectory.tool_calls.values()))
    return [(step, sum(values) / len(values)) for step, values in sorted(calls.items())]


def trained_model(plan: Plan) -> Path:
    """The Hugging Face folder of the newest RL checkpoint."""
    step = (plan.folder / "rl/latest_checkpointed_iteration.txt").read_text().strip()
    return plan.folder / f"rl/global_step_{step}/actor/huggingface"


def recipe_steps(recipes: Path) -> int:
    """Training steps of the RL recipe."""
    recipe = load_yaml((recipes / "tiny/rl.yaml").read_text(encoding="utf-8"))
    return int(recipe["trainer"]["total_training_steps"])


def script(name: str) -> str:
    """Path of a console script of this environment."""
    return str(Path(sys.executable).parent / name)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a log that may be being written."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def count_lines(path: Path) -> int:
    """Lines of a file; 0 if there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


STAGES = (
    Stage("prepare", "make the tiny model and its data", prepare, 20),
    Stage("sft", "supervised fine-tuning with LLaMA-Factory", fine_tune, 140),
    Stage("rl", "reinforcement learning with verl", reinforce, 260),
    Stage("evaluate", "evaluation with VLMEvalKit", evaluate, 100),
)
