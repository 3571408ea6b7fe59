"""Benchmarks of the code sandbox and its peers in one run: a table, a JSON file and a plot.

Without options it compares this project's server with stock ipykernels (and with
jupyter_kernel_gateway, where that is installed) in about five minutes on two cores. Servers that
speak the legacy HTTP API join by `--legacy NAME=URL`; start them yourself.

The JSON file:

| key | holds |
| --- | --- |
| `date` | when the run began, UTC |
| `machine` | cores, memory, kernel, Python, versions of what the sandboxes are made of |
| `options` | rounds, quick, sessions |
| `systems` | name to `kind`: `ours`, `live` (a process per session), `legacy` |
| `figures` | name to what is in the table, and `systems`: name to the entries below |

A figure has title, unit, better (`less`, `more`), target, reached, best_peer and ratio (how many
times better than the best peer); an entry has median, p95 (what 95 % of the samples are at least as
good as), count, failed, missing (why there is no figure), note and details.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from reporting import machine
from rich.console import Console
from sandboxes.figures import FIGURES, as_dict
from sandboxes.measures import MEASURES, Measure, Results, describe, take
from sandboxes.report import PACKAGES, draw, show
from sandboxes.systems import (
    WANTED_SESSIONS,
    DeepEyes,
    IPyKernel,
    KernelGateway,
    Legacy,
    System,
)

DEFAULT_FOLDER = Path(__file__).parents[1] / "runs" / "benchmarks"


def chosen_measures(only: list[str]) -> list[Measure]:
    """Return the measurements with those names; all without names."""
    for name in only:
        if name not in MEASURES:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(MEASURES)}")
    return [measure for name, measure in MEASURES.items() if not only or name in only]


def chosen_systems(names: list[str], legacy: list[str], sessions: int) -> list[System]:
    """Return the systems with those names, and the legacy servers."""
    known: dict[str, System] = {"deepeyes": DeepEyes(sessions), "ipykernel": IPyKernel()}
    if KernelGateway.installed():
        known["kernel_gateway"] = KernelGateway()
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}")
    chosen = [system for name, system in known.items() if not names or name in names]
    for pair in legacy:
        name, equals, url = pair.partition("=")
        if not equals or name in known:
            raise typer.BadParameter(f"--legacy {pair!r} is not NAME=URL with a new name")
        chosen.append(Legacy(name, url))
    return chosen


async def measure_all(
    measures: list[Measure],
    systems: list[System],
    *,
    rounds: int | None,
    quick: bool,
    console: Console,
) -> Results:
    """Start the systems, run all measurements, and stop the systems."""
    running: list[System] = []
    results: Results = {}
    try:
        for system in list(systems):
            started = time.perf_counter()
            running.append(system)
            try:
                await system.start()
            except Exception as error:
                raise SystemExit(f"{system.name} did not start: {describe(error)}") from error
            console.print(f"[dim]{system.name} is ready ({time.perf_counter() - started:.1f} s)[/]")
        for measure in measures:
            started = time.perf_counter()
            figures = [key for key, figure in FIGURES.items() if figure.measure == measure.name]
            results |= await take(measure, systems, figures, rounds=rounds, quick=quick)
            console.print(f"[dim]{measure.name}: {time.perf_counter() - started:.1f} s[/]")
    finally:
        for system in reversed(running):
            await system.close()
    return results


def main(
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Take this measure only; repeatable: {', '.join(MEASURES)}."),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(help="Of the systems started here, take this only; repeatable."),
    ] = None,
    legacy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=URL", help="A running server with the legacy API; repeatable."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Samples of each measurement, instead of its default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the samples.")] = False,
    sessions: Annotated[
        int, typer.Option(min=1, help="Idle sessions that deepeyes must keep alive.")
    ] = WANTED_SESSIONS,
    json_path: Annotated[Path, typer.Option("--json", metavar="PATH", help="Output file.")] = (
        DEFAULT_FOLDER / "sandbox.json"
    ),
    plot_path: Annotated[
        Path, typer.Option("--plot", metavar="PATH", help="Output file of the plot.")
    ] = (DEFAULT_FOLDER / "sandbox.png"),
) -> None:
    """Measure the code sandbox and its peers in one run."""
    console = Console(width=None if Console().is_terminal else 160)
    measures = chosen_measures(only or [])
    systems = chosen_systems(system or [], legacy or [], sessions)
    facts = machine(PACKAGES)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results = asyncio.run(
        measure_all(measures, systems, rounds=rounds, quick=quick, console=console)
    )
    document = {
        "date": date,
        "machine": facts,
        "options": {"rounds": rounds, "quick": quick, "sessions": sessions},
        "systems": {system.name: {"kind": system.kind} for system in systems},
        "figures": as_dict(results, systems),
    }
    for path in (json_path, plot_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    draw(results, systems, plot_path)
    show(results, systems, console)
    console.print(f"Written: {json_path} and {plot_path}")
    ours = {system.name for system in systems if system.kind == "ours"}
    if any(results[key][name].failed for key in results for name in ours & set(results[key])):
        raise SystemExit("a cell of this project's sandbox failed; see the table")


if __name__ == "__main__":
    typer.run(main)
