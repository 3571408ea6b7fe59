"""``deepeyes data merge`` and ``deepeyes data split``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from deepeyes_plugins.cli.console import Console, echo_json
from deepeyes_plugins.cli.data_prepare import Media, complaints, row_bars
from deepeyes_plugins.cli.options import AsJson
from deepeyes_plugins.data import combine
from deepeyes_plugins.data.combine import Amounts, Combined

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH",
        help="Files and folders: all parquet (RL) or all JSON (SFT).",
        show_default=False,
    ),
]
By = Annotated[
    str,
    typer.Option(
        metavar="COLUMN",
        help="Column with a row's source; by default data_source (RL) or source (SFT). Rows "
        "without it use the name of their file.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Random seed of the choice of rows.")]
_AMOUNT = "[SOURCE=]AMOUNT"


def merge(
    sources: Sources,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Output file, .parquet or .jsonl.",
            show_default=False,
        ),
    ],
    take: Annotated[
        list[str] | None,
        typer.Option(
            metavar=_AMOUNT,
            help="Rows to take of SOURCE, or of each other source: a number such as 100 or a share "
            "such as 0.5; repeatable. By default all.",
            show_default=False,
        ),
    ] = None,
    by: By = "",
    seed: Seed = 0,
    drop_duplicates: Annotated[
        bool,
        typer.Option(
            "--drop-duplicates",
            help="Keep only the first of rows with the same question and images.",
        ),
    ] = False,
    media: Media = None,
    as_json: AsJson = False,
) -> None:
    """Merge files into one. Bad rows are an error: prepare the files first."""
    with complaints(), row_bars() as progress:
        combined = combine.merge(
            sources,
            output,
            take=Amounts.parse(take) if take else None,
            by=by,
            seed=seed,
            drop_duplicates=drop_duplicates,
            media=media or (),
            progress=progress,
        )
    _show(combined, as_json)


def split(
    sources: Sources,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Folder for the files train and validation.",
            show_default=False,
        ),
    ],
    validation: Annotated[
        list[str],
        typer.Option(
            metavar=_AMOUNT,
            help="Rows to hold out of SOURCE, or of each other source: a number such as 100 or a "
            "share such as 0.02; repeatable.",
            show_default=False,
        ),
    ],
    by: By = "",
    seed: Seed = 0,
    media: Media = None,
    as_json: AsJson = False,
) -> None:
    """Hold out rows for validation. Rows with the same question and images stay together."""
    with complaints(), row_bars() as progress:
        combined = combine.split(
            sources,
            output,
            Amounts.parse(validation),
            by=by,
            seed=seed,
            media=media or (),
            progress=progress,
        )
    _show(combined, as_json)


def _show(combined: Combined, as_json: bool) -> None:
    if as_json:
        facts = {
            "files": {str(file): sources for file, sources in combined.files.items()},
            "duplicates": combined.duplicates,
            "short": {
                source: {"asked": asked, "found": found}
                for source, (asked, found) in combined.short.items()
            },
        }
        echo_json(facts)
        return
    console = Console()
    for file, sources in combined.files.items():
        console.print(
            f"{escape(str(file))}: {sum(sources.values()):,} rows", highlight=False, soft_wrap=True
        )
        for source, count in sources.items():
            console.print(f"  {count:>9,}  {escape(source)}", highlight=False)
    for source, (asked, found) in combined.short.items():
        console.print(
            f"{asked:,} rows of {escape(source)} were requested, but only {found:,} exist",
            highlight=False,
            soft_wrap=True,
        )
    if combined.duplicates:
        console.print(f"{combined.duplicates:,} duplicate rows", highlight=False)
