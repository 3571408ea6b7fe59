"""The table, the machine's facts and the plot."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console
from rich.table import Table

from .figures import FIGURES, Figure, judge, percentile_95
from .measures import Found, Results
from .systems import System

PACKAGES = ("numpy", "matplotlib", "ipykernel", "ipython", "jupyter_client", "pillow")

PANELS = {
    "milliseconds": ("ms",),
    "seconds": ("s",),
    "cells per second": ("cells/s",),
    "MiB per session": ("MiB",),
    "sessions in 8 GiB": ("sessions",),
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9")


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def number(value: float) -> str:
    """Three digits that matter."""
    if not value:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 3)}f}"


def _measured(figure: Figure, found: Found | None) -> str:
    if found is None:
        return ""
    if not found.samples:
        return f"[red]{found.missing}[/]" if found.failed else f"[dim]{found.missing}[/]"
    middle = number(median(found.samples))
    # The 95th percentile of a handful of samples is only their largest.
    tail = f" [dim]/ {number(percentile_95(found.samples))}[/]" if len(found.samples) > 2 else ""
    return middle + tail


def table(results: Results, systems: Sequence[System]) -> Table:
    """All figures, one a line."""
    drawn = Table(
        title="Sandboxes: median / 95th percentile",
        caption="× best peer: how many times better than the best other system of this run",
    )
    drawn.add_column("figure")
    drawn.add_column("unit")
    drawn.add_column("target", justify="right")
    for system in systems:
        drawn.add_column(system.name, justify="right", overflow="fold")
    drawn.add_column("reached")
    drawn.add_column("× best peer", justify="right")
    for key, found in results.items():
        figure = FIGURES[key]
        verdict = judge(figure, found, systems)
        sign = "≥" if figure.more_is_better else "≤"
        drawn.add_row(
            figure.title,
            figure.unit,
            "" if verdict.target is None else f"{sign} {number(verdict.target)}",
            *(_measured(figure, found.get(system.name)) for system in systems),
            {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[verdict.reached],
            "" if verdict.ratio is None else f"{verdict.ratio:.1f}",
        )
    return drawn


def show(results: Results, systems: Sequence[System], console: Console) -> None:
    """Prints the table and what is to be said of single figures."""
    console.print(table(results, systems))
    for found in results.values():
        for name, entry in found.items():
            if entry.note:
                console.print(f"{name}: {entry.note}.")


def draw(results: Results, systems: Sequence[System], path: Path) -> None:
    """Draws the medians, with a whisker to the 95th percentile and the targets."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter

    panels = {
        label: keys
        for label, units in PANELS.items()
        if (
            keys := [
                key
                for key, found in results.items()
                if FIGURES[key].unit in units and any(entry.samples for entry in found.values())
            ]
        )
    }
    if not panels:
        return
    figure, every_axes = pyplot.subplots(
        len(panels),
        1,
        figsize=(9.5, 1.6 + sum(0.48 * len(keys) + 0.75 for keys in panels.values())),
        gridspec_kw={"height_ratios": [len(keys) + 0.2 for keys in panels.values()]},
        layout="constrained",
        squeeze=False,
    )
    step = 0.72 / max(1, len(systems))
    for axes, (label, keys) in zip(every_axes[:, 0], panels.items(), strict=True):
        for row, key in enumerate(keys):
            if row % 2:
                axes.axhspan(row - 0.5, row + 0.5, color="0.96", zorder=0)
            target = judge(FIGURES[key], results[key], systems).target
            if target:
                axes.plot([target] * 2, [row - 0.44, row + 0.44], color="black", lw=1.6, zorder=2)
            for index, system in enumerate(systems):
                found = results[key].get(system.name)
                if found is None or not found.samples:
                    continue
                y = row + (index - (len(systems) - 1) / 2) * step
                middle, tail = median(found.samples), percentile_95(found.samples)
                colour = COLOURS[index % len(COLOURS)]
                axes.plot([middle, tail], [y, y], color=colour, lw=1.5, alpha=0.6, zorder=3)
                axes.plot(middle, y, "o", color=colour, ms=6, zorder=4)
                axes.annotate(
                    number(middle),
                    (tail, y),
                    (7, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7.5,
                    color=colour,
                )
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * (high / low) ** 0.08)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(keys)), [_label(key) for key in keys], fontsize=9)
        axes.set_ylim(len(keys) - 0.5, -0.5)
        more = FIGURES[keys[0]].more_is_better
        axes.set_xlabel(f"{label}, log scale: {'more' if more else 'less'} is better", fontsize=8.5)
        axes.grid(axis="x", color="0.85", lw=0.7)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [
        pyplot.Line2D([], [], marker="o", ms=6, lw=1.5, color=COLOURS[i % len(COLOURS)])
        for i in range(len(systems))
    ]
    target_handle = pyplot.Line2D(
        [], [], color="black", marker="|", ms=12, markeredgewidth=1.6, lw=0
    )
    figure.legend(
        [*handles, target_handle],
        [*(system.name for system in systems), "target"],
        loc="outside upper center",
        ncols=len(systems) + 1,
        frameon=False,
    )
    facts = machine()
    figure.suptitle(
        "Code sandboxes: median (dot) to 95th percentile (line), "
        f"{facts['cores']} cores, Linux {facts['kernel']}",
        fontsize=11,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _label(key: str) -> str:
    """A title that stands alone."""
    title = FIGURES[key].title
    if not title.startswith("…"):
        return title
    keys = list(FIGURES)
    parent = FIGURES[keys[keys.index(key) - 1]].title.partition(",")[0]
    return f"{title}"
