"""What a quickstart run has to show: a table, ``summary.json`` and ``curves.png``."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table

from deepeyes_plugins.quickstart.engines import ENGINES
from deepeyes_plugins.quickstart.plan import Plan
from deepeyes_plugins.quickstart.task import COLOURS

PACKAGES = (
    "deepeyes-plugins",
    "torch",
    "transformers",
    "llamafactory",
    "verl",
    "vllm",
    "ray",
    "ms-vlmeval",
)
CHANCE = 1 / len(COLOURS)


def summarize_run(plan: Plan, stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Put the stages' results into the form of ``summary.json``.

    Args:
        plan: What was run.
        stages: Results by stage name, each with its wall ``seconds``.

    Returns:
        Figures by stage, accuracies on the held-out split and versions.
    """
    rl, evaluation = stages["rl"], stages["evaluate"]
    sampled = rl["accuracy_sampled"]
    sft_model, rl_model = evaluation["sft"], evaluation["rl"]
    return {
        "plan": plan.as_json(),
        "engine": {"name": plan.engine, "version": ENGINES[plan.engine].version},
        "stages": {
            name: {
                key: value
                for key, value in result.items()
                if key not in ("losses", "rewards", "accuracy_sampled", "tool_calls")
                and not isinstance(value, dict)
            }
            for name, result in stages.items()
        },
        "heldout": {
            "questions": plan.heldout,
            "chance": CHANCE,
            "sft": {"greedy": sft_model["accuracy"], "sampled": _first(sampled)},
            "rl": {"greedy": rl_model["accuracy"], "sampled": _last(sampled)},
            "rl_without_sandbox": {"greedy": evaluation["rl_without_sandbox"]["accuracy"]},
        },
        "trajectories": {name: result for name, result in evaluation.items() if name != "seconds"},
        "wall_seconds": sum(result["seconds"] for result in stages.values()),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def table(summary: Mapping[str, Any]) -> Table:
    """The result as a table for the terminal."""
    heldout, trajectories = summary["heldout"], summary["trajectories"]
    engine = f"{summary['engine']['name']} {summary['engine']['version']}"
    rows = Table(
        title=f"Held-out questions: {heldout['questions']}, chance {CHANCE:.0%}; engine: {engine}"
    )
    rows.add_column("")
    blind = trajectories["rl_without_sandbox"]["answered"]
    for model in ("SFT", "SFT + RL", f"SFT + RL, no sandbox ({blind} questions)"):
        rows.add_column(model, justify="right")
    names = ("sft", "rl", "rl_without_sandbox")
    rows.add_row("accuracy, greedy (VLMEvalKit)", *(_percent(heldout[n]["greedy"]) for n in names))
    rows.add_row("accuracy, sampled (verl)", *(_percent(heldout[n].get("sampled")) for n in names))
    for key, title in (
        ("well_formed", "well formed"),
        ("used_sandbox", "used the sandbox"),
    ):
        rows.add_row(title, *(_percent(trajectories[name][key]) for name in names))
    rows.add_row("tool calls per sample", *(f"{trajectories[n]['tool_calls']:.2f}" for n in names))
    rows.add_row(
        "sandbox errors", *(str(trajectories[name]["infrastructure_errors"]) for name in names)
    )
    return rows


def write_summary(summary: Mapping[str, Any], folder: Path) -> Path:
    """Write ``summary.json``."""
    path = folder / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return path


def draw_curves(stages: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """Draw loss, reward, tool calls and accuracy over training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    sft, rl, evaluation = stages["sft"], stages["rl"], stages["evaluate"]
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (loss, reward), (calls, accuracy) = figure.subplots(2, 2)

    loss.plot(*zip(*sft["losses"], strict=True), color="tab:blue")
    loss.set(title="SFT loss", xlabel="step", yscale="log")

    reward.plot(*zip(*rl["rewards"], strict=True), color="tab:orange", marker=".")
    reward.set(title="RL reward (training batch)", xlabel="step", ylim=(0, 1.05))

    calls.plot(*zip(*rl["tool_calls"], strict=True), color="tab:green", marker=".")
    most = max(count for _, count in rl["tool_calls"])
    calls.set(title="RL tool calls per sample", xlabel="step", ylim=(0, max(1.0, most) * 1.1))

    accuracy.plot(
        *zip(*rl["accuracy_sampled"], strict=True),
        color="tab:red",
        marker="o",
        label="sampled (verl validation)",
    )
    ends = rl["accuracy_sampled"][0][0], rl["accuracy_sampled"][-1][0]
    accuracy.plot(
        ends,
        (evaluation["sft"]["accuracy"], evaluation["rl"]["accuracy"]),
        "s",
        color="tab:purple",
        label="greedy (VLMEvalKit)",
    )
    accuracy.plot(
        ends[1],
        evaluation["rl_without_sandbox"]["accuracy"],
        "x",
        color="black",
        label="greedy, sandbox off",
    )
    accuracy.axhline(CHANCE, color="grey", linestyle=":", label="chance")
    accuracy.set(title="Held-out accuracy", xlabel="RL step", ylim=(0, 1.05))
    accuracy.legend(loc="center", fontsize="small")
    for axes in (loss, reward, calls, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def _first(series: list[list[float]]) -> float | None:
    return series[0][1] if series else None


def _last(series: list[list[float]]) -> float | None:
    return series[-1][1] if series else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
