"""``deepeyes eval report``: results of an evaluation and their reliability."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from deepeyes_plugins.cli.console import Console, echo_json
from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.printable import printable

if TYPE_CHECKING:
    from eval_plugins.report.contents import Comparison, Report

_WIDE = 118
"""Minimum terminal width for the columns of the agent."""
STYLES = {"distrust": "bold red", "caution": "yellow", "note": "dim"}


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR",
            help="Work folders of VLMEvalKit and trajectory folders of one run.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for the report. [default: `report` in the first folder]"
        ),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder of an older run to compare with; repeatable."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="VLMEvalKit's name of the model, if there are several models."
        ),
    ] = None,
    against_model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model of the older run. [default: as --model]"),
    ] = None,
    title: Annotated[
        str, typer.Option(metavar="TEXT", help="Heading of the report.")
    ] = "Evaluation",
    input_price: Annotated[
        float | None, typer.Option(metavar="PRICE", min=0, help="Price per million prompt tokens.")
    ] = None,
    output_price: Annotated[
        float | None,
        typer.Option(metavar="PRICE", min=0, help="Price per million generated tokens."),
    ] = None,
    image_side: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="PIXELS",
            help="Longest side of the images in the page; 0 omits images.",
        ),
    ] = 1280,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON instead of tables.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if the results cannot be trusted.")
    ] = False,
) -> None:
    """Report on an evaluation: scores, published scores, agent metrics and trajectories.

    Writes index.html (open it in a browser), report.md and report.json. Problems that invalidate
    results, such as a failed dataset or a judge that was down, come first.
    """
    console = Console(stderr=True, highlight=False)
    from eval_plugins.report.building import NoResultsError, build, read_run
    from eval_plugins.report.contents import Prices
    from eval_plugins.report.writing import write

    try:
        run = read_run(folders, model)
        old = read_run(against, against_model or model) if against else None
        prices = Prices(input=input_price, output=output_price)
        contents = build(run, old, title=title, prices=prices)
        folder = output or folders[0] / "report"
        write(contents, run, folder, image_side=image_side)
    except (NoResultsError, OSError) as error:
        complain(str(error))

    if as_json:
        echo_json(contents.model_dump(mode="json"))
    else:
        show(contents, Console())
        console.print(f"Report: {folder / 'index.html'}", markup=False, soft_wrap=True)
    if strict and not contents.trusted:
        raise typer.Exit(1)


def show(contents: Report, console: Console) -> None:
    """Print a report for the terminal: what spoils it first, then scores and comparison."""
    from eval_plugins.report.markdown import LEVELS, passes_cells, score_cells

    for finding in contents.findings:
        line = Text(f"{LEVELS[finding.level]}: ", style=STYLES[finding.level])
        where = f"{finding.benchmark}: " if finding.benchmark else ""
        said = printable(f"{where}{finding.message}. {finding.advice}".strip())
        line.append(said, style="default")
        console.print(line, soft_wrap=True)
    if contents.findings:
        console.print()

    table = Table(box=None, header_style="bold")
    table.add_column("benchmark")
    for name in ("samples", "failed", "score", "95 %", "DeepEyesV2", "Qwen2.5-VL"):
        table.add_column(name, justify="right", no_wrap=name not in ("95 %", "Qwen2.5-VL"))
    if wide := console.width >= _WIDE:
        for name in ("calls", "turns"):
            table.add_column(name, justify="right")
        table.add_column("scoring")
    for one in contents.benchmarks:
        cells = score_cells(one)
        agent = one.agent
        more = (
            f"{sum(agent.calls.values()):.2f}" if agent else "–",
            f"{agent.turns:.1f}" if agent else "–",
            cells[-1],
        )
        table.add_row(*map(Text, (*cells[:-1], *(more if wide else ()))))
    for passes in contents.passes:
        table.add_row(*map(Text, passes_cells(passes)[:-1]))
    console.print(table)
    if contents.comparison is not None:
        console.print()
        console.print(_comparison(contents.comparison))


def _comparison(comparison: Comparison) -> Table:
    table = Table(
        "benchmark",
        "in both",
        "old",
        "new",
        "difference (95 %)",
        "gained",
        "lost",
        "p",
        box=None,
        header_style="bold",
        title="comparison with the old run",
        title_justify="left",
    )
    for one in comparison.benchmarks:
        interval = one.paired.interval.scaled(100)
        table.add_row(
            Text(one.title),
            f"{one.paired.samples:,}",
            f"{one.old:.1f}",
            f"{one.new:.1f}",
            f"{100 * one.paired.difference:+.1f} ({interval.low:+.1f} – {interval.high:+.1f})",
            f"{one.paired.gained:,}",
            f"{one.paired.lost:,}",
            f"{one.p_corrected:.2g}{' *' if one.moved else ''}",
            style="bold" if one.moved else "",
        )
    table.caption = "* significant; p corrected by Holm for the number of benchmarks"
    table.caption_justify = "left"
    return table
