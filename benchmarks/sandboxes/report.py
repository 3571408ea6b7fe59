"""The table, the machine's facts and the plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from reporting import machine, number
from rich.console import Console
from rich.table import Table

from .figures import FIGURES, Figure, judge, tail
from .measures import Found, Results
from .systems import System

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PACKAGES = ("numpy", "matplotlib", "ipykernel", "ipython", "jupyter_client", "pillow")

# Label to the units that it shows, each with its factor.
PANELS = {
    "milliseconds": {"ms": 1, "s": 1000},
    "cells per second": {"cells/s": 1},
    "MiB per session": {"MiB": 1},
    "idle sessions in 8 GiB": {"sessions": 1},
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9")


def _measured(figure: Figure, found: Found | None) -> str:
    if found is None:
        return ""
    if not found.samples:
        return "[red]failed[/]" if found.failed else "[dim]–[/]"
    middle = number(median(found.samples))
    # The tail of two samples says nothing.
    worst = f" [dim]/ {number(tail(figure, found.samples))}[/]" if len(found.samples) > 2 else ""
    return middle + worst


def table(results: Results, systems: Sequence[System]) -> Table:
    """All figures, one a line."""
    drawn = Table(
        title="Code sandboxes: median / 95th percentile",
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
    notes = [
        f"{FIGURES[key].measure}, {name}: {note}."
        for key, found in results.items()
        for name, entry in found.items()
        if (note := entry.note or (f"failed: {entry.missing}" if entry.failed else entry.missing))
    ]
    for note in dict.fromkeys(notes):
        console.print(note, markup=False, highlight=False)


def draw(results: Results, systems: Sequence[System], path: Path) -> None:
    """Draws the medians, with a whisker to the 95th percentile and the targets."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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
        figsize=(
            9.5,
            1.3 + sum((0.2 + 0.16 * len(systems)) * len(k) + 0.6 for k in panels.values()),
        ),
        gridspec_kw={"height_ratios": [len(keys) + 0.2 for keys in panels.values()]},
        layout="constrained",
        squeeze=False,
    )
    for axes, (label, keys) in zip(every_axes[:, 0], panels.items(), strict=True):
        for row, key in enumerate(keys):
            factor = PANELS[label][FIGURES[key].unit]
            if row % 2:
                axes.axhspan(row - 0.5, row + 0.5, color="0.96", zorder=0)
            target = judge(FIGURES[key], results[key], systems).target
            if target:
                axes.plot([target * factor] * 2, [row - 0.44, row + 0.44], color="black", lw=1.6)
            for index, system in enumerate(systems):
                found = results[key].get(system.name)
                if found is not None and found.samples:
                    offset = (index - (len(systems) - 1) / 2) * 0.76 / len(systems)
                    samples = [value * factor for value in found.samples]
                    _mark(axes, FIGURES[key], samples, row + offset, COLOURS[index % len(COLOURS)])
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        # Room for the last number, and never so little that noise looks like a difference.
        low, high = min(low, high / 8), max(high, low * 2) * (high / low) ** 0.07
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(keys)), [FIGURES[key].title for key in keys], fontsize=9)
        axes.set_ylim(len(keys) - 0.5, -0.5)
        better = "more" if FIGURES[keys[0]].more_is_better else "less"
        axes.set_xlabel(f"{label} (log scale, {better} is better)", fontsize=8.5)
        axes.grid(axis="x", color="0.85", lw=0.7)
        axes.tick_params(axis="x", labelsize=8.5)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
    names = [system.name for system in systems]
    handles = [
        pyplot.Line2D([], [], marker="o", ms=6, lw=1.5, color=COLOURS[i % len(COLOURS)])
        for i in range(len(systems))
    ]
    bar = pyplot.Line2D([], [], color="black", marker="|", ms=12, markeredgewidth=1.6, lw=0)
    figure.legend(
        [*handles, bar],
        [*names, "target"],
        loc="outside lower center",
        ncols=len(systems) + 1,
        frameon=False,
    )
    facts = machine(PACKAGES)
    figure.suptitle(
        "Code sandboxes: median (dot, number) and 95th percentile (end of line)\n"
        f"{facts['cores']} cores, Linux {facts['kernel']}, Python {facts['python']}",
        fontsize=10.5,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _mark(axes: Axes, figure: Figure, samples: list[float], y: float, colour: str) -> None:
    middle = median(samples)
    end = tail(figure, samples) if len(samples) > 2 else middle
    axes.plot([middle, end], [y, y], color=colour, lw=1.5, alpha=0.6, zorder=3)
    axes.plot(middle, y, "o", color=colour, ms=6, zorder=4)
    axes.annotate(
        number(middle),
        (max(middle, end), y),
        (7, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color=colour,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
    )
