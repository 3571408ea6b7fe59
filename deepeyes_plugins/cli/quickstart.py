"""``deepeyes quickstart``: the main job on a tiny model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deepeyes_plugins.cli.console import Console
from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.cli.paths import recipes_folder
from deepeyes_plugins.quickstart.engines import EngineName, why_not_vllm
from deepeyes_plugins.quickstart.plan import FAST, FULL, Plan, RunState
from deepeyes_plugins.quickstart.process import StageError
from deepeyes_plugins.quickstart.report import draw_curves, summarize_run, table, write_summary
from deepeyes_plugins.quickstart.stages import STAGES, Stage

SILENCE_SECONDS = 20.0
"""Without a terminal, progress is a line this often at most."""


def quickstart(
    fast: Annotated[
        bool, typer.Option("--fast", help="Every stage, a few steps each; nothing is learned.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew instead of resuming an earlier run.")
    ] = False,
    engine: Annotated[
        EngineName | None,
        typer.Option(
            help="What generates in RL and serves for the evaluation. [default: vllm; "
            "transformers, the second choice, where vLLM does not run]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a tiny agent by SFT and RL and evaluate it, by the frameworks' own commands.

    Results go to runs/quickstart (runs/quickstart-fast with --fast). An interrupted run resumes
    at the stage it was in.
    """
    console = Console()
    lack = why_not_vllm()
    if engine is EngineName.VLLM and lack:
        complain(f"vLLM does not run here: {lack}; --engine transformers does", 2)
    chosen = engine or (EngineName.TRANSFORMERS if lack else EngineName.VLLM)
    if chosen is EngineName.TRANSFORMERS:
        reason = f"vLLM does not run here: {lack}" if lack else "vLLM would run here"
        console.print(f"Engine: transformers, the second choice ({reason}).", highlight=False)
    plan = replace(FAST if fast else FULL, engine=chosen)
    if restart:
        shutil.rmtree(plan.folder, ignore_errors=True)
    state = RunState(plan)
    try:
        for number, stage in enumerate(STAGES, 1):
            if stage.name in state.stages:
                console.print(f"[{number}/{len(STAGES)}] {stage.title}: done before")
                continue
            play(stage, number, plan, state, console)
    except StageError as error:
        complain(f"the stage failed.\n{error}")
    except KeyboardInterrupt:
        console.print("Interrupted. The same command resumes at this stage.")
        raise typer.Exit(130) from None

    summary = summarize_run(plan, state.stages)
    console.print(table(summary))
    written = write_summary(summary, plan.folder), draw_curves(state.stages, plan.folder)
    files = ", ".join(map(str, written))
    console.print(f"Written: {files}. Wall {summary['wall_seconds']:.0f} s.", markup=False)
    if not plan.claims:
        console.print("A fast run shows that every stage works; its accuracies mean nothing.")
    console.print(
        "Next, the real model: recipes/sft.yaml, then recipes/rl.yaml; see README.md.",
        highlight=False,
    )


def play(stage: Stage, number: int, plan: Plan, state: RunState, console: Console) -> None:
    """Run one stage under a progress display and record its result."""
    title = f"[{number}/{len(STAGES)}] {stage.title}"
    later = sum(other.seconds for other in STAGES[number:] if other.name not in state.stages)
    started = time.monotonic()
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(title, total=None, left="")
        say = _plain_reporter(title, console)

        def report(done: int, total: int) -> None:
            spent = time.monotonic() - started
            left = stage.seconds - spent if not done else spent / done * (total - done)
            text = f"about {max(1.0, (max(0.0, left) + later) / 60):.0f} min left in all"
            text = text if plan.claims else ""
            progress.update(task, completed=done, total=total, left=text)
            say(done, total, text)

        say(0, 0, "")
        result = stage.play(plan, recipes_folder(), report)
    result["seconds"] = round(time.monotonic() - started, 1)
    state.finish(stage.name, result)
    console.print(f"{title}: done in {result['seconds']:.0f} s", markup=False)


def _plain_reporter(title: str, console: Console) -> Callable[[int, int, str], None]:
    """Progress for logs and pipes: a line now and then, and only when something moved."""
    if console.is_terminal:
        return lambda done, total, left: None
    last_time, last_done = float("-inf"), -1

    def say(done: int, total: int, left: str) -> None:
        nonlocal last_time, last_done
        now = time.monotonic()
        if done != last_done and now - last_time >= SILENCE_SECONDS:
            step = f" {done}/{total}" if total else ""
            console.print(f"{title}{step} {left}".rstrip(), markup=False)
            last_time, last_done = now, done

    return say
