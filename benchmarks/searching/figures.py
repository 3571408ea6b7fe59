"""A figure: what was measured, and what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One figure; less is better.

    Attributes:
        name: Its key in the JSON file.
        title: What it is, for people.
        unit: Of the value.
        value: What was measured.
        target: What it should be at most, if anything is asked of it.
    """

    name: str
    title: str
    unit: Literal["ms", "s", "MiB", "calls"]
    value: float
    target: float | None = None

    @property
    def reached(self) -> bool | None:
        return None if self.target is None else self.value <= self.target


def percentile(samples: Sequence[float], share: float) -> float:
    """The value that ``share`` of the samples are at most."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(figures: Sequence[Figure], console: Console) -> None:
    table = Table("figure", "value", "target", "", box=None, header_style="bold")
    for figure in figures:
        target = "" if figure.target is None else f"{figure.target:g} {figure.unit}"
        verdict = {True: "[green]reached[/]", False: "[red]missed[/]", None: ""}[figure.reached]
        table.add_row(figure.title, f"{figure.value:.4g} {figure.unit}", target, verdict)
    console.print(table)
