"""Benchmarks of the agent loop's overhead: a table and a JSON file.

A simulated engine (rollouts/simulation.py says where its latencies come from), the real loop, the
real token policy with verl's token builder and a Qwen2.5-VL processor; for a GRPO step, all of verl
on a CPU. In full it takes some twelve minutes on two cores, which should do nothing else.

The JSON file:

| key | holds |
| --- | --- |
| `date` | when the run began, UTC |
| `machine` | cores, memory, kernel, Python, versions |
| `options` | only, quick |
| `figures` | name to title, unit, goal, better (`less`, `more`), value, reached, note, details |
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from reporting import machine, number
from rich.console import Console
from rollouts import lag, makespan, models, step, turns
from rollouts.figures import FIGURES, Measured, as_dict, table

PACKAGES = ("torch", "transformers", "verl", "ray", "pillow")
DEFAULT_PATH = Path(__file__).parents[1] / "runs" / "benchmarks" / "rollout.json"


def measure_makespan(quick: bool) -> dict[str, Measured]:
    """Measure the makespan of independent trajectories against a barrier after every turn."""
    prompts, scale, workers = (4, 0.02, 1) if quick else (256, 0.5, 2)
    found = makespan.measure(prompts=prompts, scale=scale, workers=workers)
    details = dataclasses.asdict(found)
    note = (
        f"{prompts} x 16 trajectories in {workers} processes, 1 s played in {scale} s; "
        + ", ".join(
            f"{name.replace('_', ' ')} {number(value)} s" for name, value in details.items()
        )
    )
    longer = 100 * (found.ours / found.critical_path - 1)
    return {
        "barrier": Measured(found.barrier / found.ours, note, details),
        "critical_path": Measured(longer, note, details),
    }


def measure_turn(quick: bool) -> dict[str, Measured]:
    """Measure the agent loop's own time per turn."""
    found = turns.measure(models.make_builder(), samples=3 if quick else 40)
    late, early = median(found.late), median(found.early)
    thousands = (found.tokens - found.early_tokens) / 1000
    tail = number(lag.percentile(found.late, 95))
    note = (
        f"median of {len(found.late)}, 95th percentile {tail} ms; "
        f"at {found.tokens} tokens and {found.images} images; {number(early)} ms at "
        f"{found.early_tokens} tokens"
    )
    details = dataclasses.asdict(found)
    return {
        "turn": Measured(late, note, details),
        "turn_growth": Measured((late - early) / thousands, note, details),
    }


def measure_lag(quick: bool) -> dict[str, Measured]:
    """Measure the event-loop lag and the memory of a worker."""
    options = {"prompts": 1, "megapixels": 1, "window": 3.0} if quick else {"prompts": 32}
    found = lag.measure(models.make_builder(), **options)
    shares = {
        f"p{share:g}": lag.percentile(found.milliseconds, share)
        for share in (50, 95, 99, 99.9, 100)
    }
    note = (
        f"{found.live} live, {number(found.seconds)} s, {len(found.milliseconds)} looks; "
        + ", ".join(f"{name} {number(value)} ms" for name, value in shares.items())
    )
    details = {**shares, "live": found.live, "seconds": found.seconds}
    return {
        "lag": Measured(shares["p99"], note, details),
        "memory": Measured(found.memory, note, details),
    }


def measure_step(quick: bool) -> dict[str, Measured]:
    """Measure GRPO steps of verl with this agent loop against verl's own."""
    with tempfile.TemporaryDirectory(prefix="deepeyes-step-") as folder:
        found = step.measure(Path(folder), steps=4 if quick else 8)
    seconds = {loop: median(one.seconds) for loop, one in found.items()}
    note = "; ".join(
        f"{loop} {number(seconds[loop])} s, {number(one.response_tokens)} tokens a response, "
        f"{number(one.turns)} messages"
        for loop, one in found.items()
    )
    ours, stock = (seconds[loop] for loop in step.LOOPS)
    details = {loop: dataclasses.asdict(one) for loop, one in found.items()}
    return {"step": Measured(ours / stock, note, details)}


MEASURES: dict[str, Callable[[bool], dict[str, Measured]]] = {
    "turn": measure_turn,
    "lag": measure_lag,
    "makespan": measure_makespan,
    "step": measure_step,
}


def main(
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Take this measure only; repeatable: {', '.join(MEASURES)}."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smoke test with small numbers.")] = False,
    json_path: Annotated[Path, typer.Option("--json", metavar="PATH", help="Output file.")] = (
        DEFAULT_PATH
    ),
) -> None:
    """Measure the agent loop's overhead."""
    console = Console(width=None if Console().is_terminal else 160)
    for name in only or []:
        if name not in MEASURES:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(MEASURES)}")
    facts = machine(PACKAGES)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    measured: dict[str, Measured] = {}
    for name, measure in MEASURES.items():
        if not only or name in only:
            started = time.perf_counter()
            measured |= measure(quick)
            console.print(f"[dim]{name}: {time.perf_counter() - started:.1f} s[/]")
    measured = {key: measured[key] for key in FIGURES if key in measured}
    document = {
        "date": date,
        "machine": facts,
        "options": {"only": only or [], "quick": quick},
        "figures": as_dict(measured),
    }
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console.print(table(measured))
    for note in dict.fromkeys(
        f"{FIGURES[key].measure}: {one.note}." for key, one in measured.items()
    ):
        console.print(note, markup=False, highlight=False)
    console.print(f"Written: {json_path}")


if __name__ == "__main__":
    typer.run(main)
