"""Benchmarks of search: a table and a JSON file.

Remote engines are excluded: a local one that responds at once replaces them, so that what is
measured is this project's part.

The JSON file:

| key | holds |
| --- | --- |
| `date` | when the run began, UTC |
| `machine` | cores, memory, kernel, Python, versions of what search is made of |
| `options` | quick |
| `figures` | name to title, unit, target, reached, median, p95, count |
| `details` | measure to whatever else it tells |
| `missing` | measure to why it has no figures |
"""

from __future__ import annotations

import asyncio
import datetime
import importlib
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from reporting import machine, number
from rich.console import Console
from rich.table import Table
from searching.measures import MEASURES, Figure, Taken, at

MODULES = ("searching.service", "searching.local", "searching.images")
"""Where measures are registered."""
PACKAGES = ("httpx", "starlette", "uvicorn", "pydantic", "tantivy", "numpy", "pillow")
DEFAULT_JSON = Path(__file__).parents[1] / "runs" / "benchmarks" / "search.json"

for module in MODULES:
    importlib.import_module(module)


def entry(figure: Figure, samples: list[float]) -> dict[str, object]:
    """Convert a result to the format of the JSON file."""
    value = at(samples, figure.share)
    reached = None
    if figure.target is not None:
        reached = value >= figure.target if figure.more_is_better else value <= figure.target
    tail = 0.05 if figure.more_is_better else 0.95
    return {
        "title": figure.title,
        "unit": figure.unit,
        "target": figure.target,
        "reached": reached,
        "median": at(samples, 0.5),
        "p95": at(samples, tail),
        "count": len(samples),
    }


def table(taken: dict[str, Taken]) -> Table:
    """Make the table of all results, one per line."""
    drawn = Table(title="Search: median / 95th percentile")
    for name in ("figure", "unit", "target", "value", "reached"):
        drawn.add_column(name, justify="left" if name in ("figure", "unit") else "right")
    for name, found in taken.items():
        for figure in MEASURES[name].figures:
            samples = found.samples.get(figure.key)
            if not samples:
                drawn.add_row(figure.title, figure.unit, "", "[dim]–[/]", "")
                continue
            shown = entry(figure, samples)
            sign = "≥" if figure.more_is_better else "≤"
            drawn.add_row(
                figure.title,
                figure.unit,
                "" if figure.target is None else f"{sign} {number(figure.target)}",
                f"{number(at(samples, 0.5))} [dim]/ {number(float(str(shown['p95'])))}[/]",
                {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[shown["reached"]],  # type: ignore[index]
            )
    return drawn


def main(
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Take this measure only; repeatable: {', '.join(MEASURES)}."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the samples.")] = False,
    json_path: Annotated[
        Path, typer.Option("--json", metavar="PATH", help="Output file.")
    ] = DEFAULT_JSON,
) -> None:
    """Measure search."""
    console = Console(width=None if Console().is_terminal else 120)
    for name in only or []:
        if name not in MEASURES:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(MEASURES)}")
    facts = machine(PACKAGES)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    taken: dict[str, Taken] = {}
    for name in only or MEASURES:
        started = time.perf_counter()
        taken[name] = asyncio.run(MEASURES[name].take(quick))
        console.print(f"[dim]{name}: {time.perf_counter() - started:.1f} s[/]")
    document = {
        "date": date,
        "machine": facts,
        "options": {"quick": quick},
        "figures": {
            figure.key: entry(figure, found.samples[figure.key])
            for name, found in taken.items()
            for figure in MEASURES[name].figures
            if found.samples.get(figure.key)
        },
        "details": {name: found.details for name, found in taken.items() if found.details},
        "missing": {name: found.missing for name, found in taken.items() if found.missing},
    }
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console.print(table(taken))
    for name, found in taken.items():
        if found.missing:
            console.print(f"{name}: {found.missing}", markup=False)
    console.print(f"Written: {json_path}")


if __name__ == "__main__":
    typer.run(main)
