"""Results of the rollout benchmarks: names, targets and the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reporting import number
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        title: What it is, for people.
        measure: Name of the measure that it comes from.
        unit: Of its value.
        goal: The value to reach, if there is one.
        more_is_better: Whether the goal is a least value.
    """

    title: str
    measure: str
    unit: str
    goal: float | None = None
    more_is_better: bool = False

    def reached(self, value: float) -> bool | None:
        """Return whether ``value`` reaches the target; ``None`` without a target."""
        if self.goal is None:
            return None
        return value >= self.goal if self.more_is_better else value <= self.goal


FIGURES: Mapping[str, Figure] = {
    "barrier": Figure(
        "makespan, 9 turns: how many times shorter than with the barrier",
        "makespan",
        "×",
        2,
        more_is_better=True,
    ),
    "critical_path": Figure("… longer than the critical path", "makespan", "%", 10),
    "turn": Figure("our time of a turn at 16,000 tokens and 10 images", "turn", "ms", 10),
    "turn_growth": Figure("… more for each 1,000 earlier tokens", "turn", "ms", 0.1),
    "lag": Figure("event-loop lag, 512 live trajectories, 12 MP, p99", "lag", "ms", 50),
    "memory": Figure("… peak memory of a worker per live trajectory", "lag", "MiB"),
    "step": Figure("GRPO step of the tiny model, times verl's tool_agent", "step", "×", 1.05),
}
"""Judge calls of a group belong here, too, as soon as something measures them."""


@dataclass(frozen=True)
class Measured:
    """A measured value with a note and its samples."""

    value: float
    note: str
    details: Mapping[str, Any]


def table(measured: Mapping[str, Measured]) -> Table:
    """Make the table of all results, one per line."""
    drawn = Table(title="Rollouts")
    for name in ("figure", "unit"):
        drawn.add_column(name)
    for name in ("goal", "measured"):
        drawn.add_column(name, justify="right")
    drawn.add_column("reached")
    for key, found in measured.items():
        figure = FIGURES[key]
        sign = "≥" if figure.more_is_better else "≤"
        verdict = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}
        drawn.add_row(
            figure.title,
            figure.unit,
            "" if figure.goal is None else f"{sign} {number(figure.goal)}",
            number(found.value),
            verdict[figure.reached(found.value)],
        )
    return drawn


def as_dict(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Convert the results to the format of the JSON file."""
    return {
        key: {
            "title": FIGURES[key].title,
            "unit": FIGURES[key].unit,
            "goal": FIGURES[key].goal,
            "better": "more" if FIGURES[key].more_is_better else "less",
            "value": found.value,
            "reached": FIGURES[key].reached(found.value),
            "note": found.note,
            "details": dict(found.details),
        }
        for key, found in measured.items()
    }
