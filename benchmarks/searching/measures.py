"""Registry of search measurements."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        key: Its name in the JSON file.
        title: Title in tables.
        unit: Of its values.
        target: The value to reach, if there is one.
        share: Of the samples, which one is held against the target: 0.5 is the median.
        more_is_better: Whether it is a rate or a count, rather than a cost.
    """

    key: str
    title: str
    unit: str
    target: float | None = None
    share: float = 0.5
    more_is_better: bool = False


@dataclass
class Taken:
    """Result of a measurement.

    Attributes:
        samples: Values by the figure's key.
        details: More, for the JSON file.
        missing: Why there are no figures.
    """

    samples: dict[str, list[float]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class Measure:
    """A way to take samples.

    Attributes:
        name: What ``--only`` takes.
        figures: What it gives.
        take: Takes all samples; its argument is whether a tenth of them will do.
    """

    name: str
    figures: tuple[Figure, ...]
    take: Callable[[bool], Awaitable[Taken]]


MEASURES: dict[str, Measure] = {}


def measure(
    *figures: Figure,
) -> Callable[[Callable[[bool], Awaitable[Taken]]], Callable[[bool], Awaitable[Taken]]]:
    """Register a function as the measure of its name."""

    def register(take: Callable[[bool], Awaitable[Taken]]) -> Callable[[bool], Awaitable[Taken]]:
        name = getattr(take, "__name__", "")
        MEASURES[name] = Measure(name, figures, take)
        return take

    return register


def at(samples: list[float], share: float) -> float:
    """The sample below which a share of all lies (nearest rank)."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
