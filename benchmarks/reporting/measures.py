"""Runner of named measurements: compares each with its target, writes a table and a JSON file."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table


@dataclass
class Figure:
    """A measured value with its target.

    Attributes:
        title: What was measured.
        value: The measured value.
        unit: Of the value.
        goal: The least value that is good enough, or the largest.
        details: More numbers, for the JSON file.
        at_most: The goal is the largest.
    """

    title: str
    value: float
    unit: str
    goal: float
    details: dict[str, float] = field(default_factory=dict)
    at_most: bool = False

    @property
    def reached(self) -> bool:
        """Whether the target is reached."""
        return self.value <= self.goal if self.at_most else self.value >= self.goal


Measure = Callable[[bool], Figure]


def measure(
    known: Mapping[str, str], only: Sequence[str] | None, quick: bool, file: Path
) -> dict[str, Figure]:
    """Run the measurements, show and write the results.

    Args:
        known: Name to `module:function`; the function takes whether to be quick.
        only: Names to measure; without any, all.
        quick: Little data: does it run at all?
        file: JSON file to write.
    """
    measures = {name: _load(known, name) for name in only or known}
    began = datetime.datetime.now(datetime.UTC)
    load_at_start = os.getloadavg()[0]
    figures = {name: one(quick) for name, one in measures.items()}
    Console().print(_table(figures))
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
    return figures


def _load(known: Mapping[str, str], name: str) -> Measure:
    if name not in known:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}")
    module, _, function = known[name].partition(":")
    loaded: Measure = getattr(import_module(module), function)
    return loaded


def _table(figures: Mapping[str, Figure]) -> Table:
    shown = Table("measure", "what", "value", "goal", "")
    for name, figure in figures.items():
        goal = f"at {'most' if figure.at_most else 'least'} {figure.goal:g} {figure.unit}"
        value = f"{figure.value:.2f} {figure.unit}"
        shown.add_row(name, figure.title, value, goal, "reached" if figure.reached else "missed")
    return shown
