"""Results of the sandbox benchmarks: names, targets and verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from .measures import Found, Results
from .systems import WANTED_SESSIONS, System


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        title: Title in tables.
        measure: Name of the measure that it comes from.
        unit: Of its values.
        target: The value to reach, if it is a fixed one.
        times: The kind of a peer to how many times its value must be reached, for figures that
            are compared with peers of the same run only.
        more_is_better: Whether it is a rate or a count, rather than a cost.
    """

    title: str
    measure: str
    unit: Literal["ms", "s", "cells/s", "errors", "MiB", "sessions", "/255"]
    target: float | None = None
    times: Mapping[str, float] = field(default_factory=dict)
    more_is_better: bool = False


LIVE_AND_LEGACY = {"live": 2.0, "legacy": 10.0}

FIGURES: dict[str, Figure] = {
    "trivial": Figure("trivial cell", "trivial", "ms", 2.5),
    "held": Figure("trivial cell, 100 MB held", "held", "ms"),
    "image_1": Figure("new session, 1 MP image, first cell", "image_1", "ms", 30),
    "siblings_1": Figure("… 2nd to 16th with that image", "siblings_1", "ms", 15),
    "image_12": Figure("new session, 12 MP image, first cell", "image_12", "ms", 250),
    "siblings_12": Figure("… 2nd to 16th with that image", "siblings_12", "ms", 30),
    "plot": Figure("crop + imshow + show", "plot", "ms", 70),
    "fidelity": Figure("… difference from stock inline", "fidelity", "/255", 1),
    "burst": Figure("32 sessions at once, first cells", "burst", "s", 0.8),
    "mixed_9_1": Figure(
        "32 busy sessions, 9 trivial : 1 plot",
        "mixed",
        "cells/s",
        times=LIVE_AND_LEGACY,
        more_is_better=True,
    ),
    "mixed_1_1": Figure(
        "32 busy sessions, 1 trivial : 1 plot",
        "mixed",
        "cells/s",
        times=LIVE_AND_LEGACY,
        more_is_better=True,
    ),
    "mixed_errors": Figure("… failed cells in both", "mixed", "errors", 0),
    "memory_idle": Figure("a session's own memory, idle", "memory", "MiB", 8),
    "memory_plot": Figure("… after image and plot", "memory", "MiB", 30),
    "capacity": Figure(
        "idle sessions in 8 GiB", "capacity", "sessions", WANTED_SESSIONS, more_is_better=True
    ),
    "evict_small": Figure("evict and restore, small namespace", "evict_small", "ms", 10),
    "evict_image": Figure("evict and restore, 1 MP image", "evict_image", "ms", 30),
}


def full_title(key: str) -> str:
    """Return the title of a result, with a leading ellipsis expanded."""
    title = FIGURES[key].title
    if title.startswith("…"):
        keys = list(FIGURES)
        return full_title(keys[keys.index(key) - 1]) + title.replace("…", ";")
    return title


def tail(figure: Figure, samples: Sequence[float]) -> float:
    """Return the value that 95 % of the samples reach."""
    ordered = sorted(samples, reverse=figure.more_is_better)
    return ordered[max(0, math.ceil(len(ordered) * 0.95) - 1)]


@dataclass(frozen=True)
class Verdict:
    """Comparison of a result with target and peers.

    Attributes:
        target: The value to reach; None where no peer ran that it depends on.
        reached: Whether it is; None where it cannot be told.
        best_peer: Name of the best other system of the same run.
        ratio: How many times better than the best peer ours is.
    """

    target: float | None = None
    reached: bool | None = None
    best_peer: str | None = None
    ratio: float | None = None


def judge(figure: Figure, found: Mapping[str, Found], systems: Sequence[System]) -> Verdict:
    """Compare this server's result with its target and with the best peer."""
    kinds = {system.name: system.kind for system in systems}
    values = {name: median(entry.samples) for name, entry in found.items() if entry.samples}
    [ours] = [name for name, kind in kinds.items() if kind == "ours"] or [""]
    best = max if figure.more_is_better else min
    target = figure.target
    if figure.times:
        wanted = [
            factor * max(values[name] for name in values if kinds[name] == kind)
            for kind, factor in figure.times.items()
            if any(kinds[name] == kind for name in values)
        ]
        target = max(wanted, default=None)
    peers = {name: value for name, value in values.items() if name != ours}
    best_peer = best(peers, key=lambda name: peers[name]) if peers else None
    if ours not in found:
        return Verdict(target, None, best_peer)
    if ours not in values:
        return Verdict(target, False if found[ours].failed else None, best_peer)
    value = values[ours]
    reached = None
    if target is not None:
        reached = value >= target if figure.more_is_better else value <= target
    ratio = None
    if best_peer and value and peers[best_peer]:
        ratio = value / peers[best_peer] if figure.more_is_better else peers[best_peer] / value
    return Verdict(target, reached, best_peer, ratio)


def as_dict(results: Results, systems: Sequence[System]) -> dict[str, Any]:
    """Convert the results to the format of the JSON file."""
    answer: dict[str, Any] = {}
    for key, found in results.items():
        figure = FIGURES[key]
        verdict = judge(figure, found, systems)
        answer[key] = {
            "title": full_title(key),
            "unit": figure.unit,
            "better": "more" if figure.more_is_better else "less",
            "target": verdict.target,
            "reached": verdict.reached,
            "best_peer": verdict.best_peer,
            "ratio": verdict.ratio,
            "systems": {name: _entry(figure, entry) for name, entry in found.items()},
        }
    return answer


def _entry(figure: Figure, found: Found) -> dict[str, Any]:
    samples = found.samples
    return {
        "median": median(samples) if samples else None,
        "p95": tail(figure, samples) if samples else None,
        "count": len(samples),
        "failed": found.failed,
        "missing": found.missing,
        "note": found.note,
        "details": {name: median(values) for name, values in found.details.items()},
    }
