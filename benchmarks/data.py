"""Measures the data tools beside their goals: a table, and a JSON file.

The measures are the modules of `data_measures`; `--only NAME` takes one of them.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from data_measures import MEASURES, Figure, Measure
from rich.console import Console
from rich.table import Table

DEFAULT_FILE = Path(__file__).parents[1] / "runs" / "benchmarks" / "data.json"


def load(name: str) -> Measure:
    """The measure of that name."""
    if name not in MEASURES:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(MEASURES)}")
    module, _, function = MEASURES[name].partition(":")
    measure: Measure = getattr(import_module(module), function)
    return measure


def table(figures: dict[str, Figure]) -> Table:
    """The figures beside their goals."""
    shown = Table("measure", "what", "value", "goal", "")
    for name, figure in figures.items():
        values = (f"{figure.value:.2f} {figure.unit}", f"at least {figure.goal} {figure.unit}")
        shown.add_row(name, figure.title, *values, "reached" if figure.reached else "missed")
    return shown


def main(
    only: Annotated[list[str] | None, typer.Option(help="Measure only this; repeatable.")] = None,
    quick: Annotated[bool, typer.Option(help="Small data: does it run at all?")] = False,
    file: Annotated[Path, typer.Option(help="JSON file to write.")] = DEFAULT_FILE,
) -> None:
    """Measure, show and write the figures."""
    measures = {name: load(name) for name in only or MEASURES}
    began = datetime.datetime.now(datetime.UTC)
    load_at_start = os.getloadavg()[0]
    figures = {name: measure(quick) for name, measure in measures.items()}
    Console().print(table(figures))
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "date": began.isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load_at_start": load_at_start,
        },
        "quick": quick,
        "figures": {
            name: {**vars(figure), "reached": figure.reached} for name, figure in figures.items()
        },
    }
    file.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
