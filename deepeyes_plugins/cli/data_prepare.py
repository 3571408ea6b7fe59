"""``deepeyes data prepare``: prepare published data for the recipes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from deepeyes_plugins.cli.console import Console, echo_json
from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.cli.options import AsJson
from deepeyes_plugins.data.check.images import inspect_image
from deepeyes_plugins.data.check.rl import RowRules
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.findings import DataError, Finding
from deepeyes_plugins.data.media import read_media
from deepeyes_plugins.data.output import refuse_inputs, write_text
from deepeyes_plugins.data.prepare import REPORT_NAME, Prepared, prepare_rl, prepare_sft
from deepeyes_plugins.data.prepare.changes import Outcome, report_lines
from deepeyes_plugins.data.sources import Progress as Told
from deepeyes_plugins.data.sources import Sources as Found
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.renamed import warn_renamed
from deepeyes_plugins.search.fetching import thumbnail_rules
from deepeyes_plugins.search.image_cache import ImageCacheError
from deepeyes_plugins.search.image_conversion import convert
from deepeyes_plugins.search.thumbnails import LONGEST_SIDE
from deepeyes_plugins.settings import load_settings

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="PATH",
        help="Downloaded data files, folders of them, and zip files of images.",
        show_default=False,
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="PATH", help="Folder for the result.", show_default=False
    ),
]
Media = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="Folder or zip file with images; repeatable. By default the folders of the data and "
        "zip files in them.",
        show_default=False,
    ),
]
KeepBad = Annotated[
    bool, typer.Option("--keep-bad", help="Also write rows that cannot be repaired.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 if a row cannot be repaired.")]


def sft(
    sources: Sources,
    output: Output,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the data set in recipes.")
    ] = "deepeyes_v2_sft",
    media: Media = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Column to keep besides messages and images, as a string; repeatable.",
            show_default=False,
        ),
    ] = None,
    prefill: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Required beginning of assistant turns: '<think>' for the templates deepeyes_*, "
            "'' for others.",
        ),
    ] = "<think>",
    no_decoding: Annotated[
        bool, typer.Option("--no-decoding", help="Check only that image files exist.")
    ] = False,
    keep_bad: KeepBad = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Prepare an SFT data set for LLaMA-Factory. Resumes an interrupted run."""
    with complaints(resumes=True), row_bars() as progress:
        prepared = prepare_sft(
            sources,
            output,
            name=name,
            media=media or (),
            columns=keep or (),
            prefill=prefill,
            decode=not no_decoding,
            keep_bad=keep_bad,
            progress=progress,
        )
    _show(prepared, as_json, strict, keep_bad)


def rl(
    sources: Sources,
    output: Output,
    media: Media = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="agent.yaml of the training, with the default environment and rewards.sources.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option("--data-source", metavar="NAME", help="data_source of rows without one."),
    ] = "",
    keep_bad: KeepBad = False,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Prepare RL parquet files for verl. Resumes an interrupted run."""
    with complaints(resumes=True), row_bars() as progress:
        settings = load_settings(config)
        prepared = prepare_rl(
            sources,
            output,
            rules=RowRules(settings.environment, settings.rewards.sources),
            media=media or (),
            source=source,
            keep_bad=keep_bad,
            progress=progress,
        )
    _show(prepared, as_json, strict, keep_bad)


def search_cache(
    sources: Sources,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PATH", help="File for the cache.", show_default=False
        ),
    ],
    media: Media = None,
    images: Annotated[
        list[Path] | None, typer.Option(hidden=True, help="Old name of --media.")
    ] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Parquet file with the questions' images, to find results by image too; "
            "repeatable.",
            show_default=False,
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download thumbnails that are URLs.")
    ] = False,
    longest_side: Annotated[
        int, typer.Option(metavar="N", min=32, help="Maximum side of a thumbnail in pixels.")
    ] = LONGEST_SIDE,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Prepare the cache of the image search provider `cache`, with a report of missing images.

    Reads the published caches of DeepEyesV2 (JSON) and MMSearch-R1 (pickle, whose code is not run).
    """
    if images:
        warn_renamed("--images", "--media")
    media = [*(media or ()), *(images or ())]
    report = output.with_name(f"{output.name}.{REPORT_NAME}")
    lines: list[str] = []
    with complaints():
        found = Found.find(sources, (".json", ".pkl"), "JSON or pickle", media)
        # A folder of images may get the cache, a folder that is searched for sources may not.
        refuse_inputs((output, report), [*sources, *filter(Path.is_file, media)])
        places = found.places

        def read_image(root: Path, name: str) -> bytes:
            del root
            try:
                data = read_media(places.locate(name))
                seen = inspect_image(1, data)
                reason = seen.reason if isinstance(seen, Finding) else ""
            except RowError as error:
                reason = str(error)
            if reason:
                fault = Finding(f"{name}: {reason}", "cached_images_path")
                outcome = Outcome(None, faults=[fault])
                lines.append(report_lines(str(places), None, outcome, kept=False))
                raise FileNotFoundError(name)
            return data

        try:
            with row_bars() as progress:
                counts = convert(
                    found.files,
                    output,
                    read_image=read_image,
                    questions=questions or (),
                    rules=thumbnail_rules() if download else None,
                    longest_side=longest_side,
                    progress=lambda what, done, total: progress(what, done, total or None),
                )
        except (ImageCacheError, sqlite3.Error, OSError) as error:
            complain(f"{output}: {error}")
        write_text(report, "".join(lines))
    facts = {"files": [str(output)], "report": str(report), **counts}
    if as_json:
        echo_json(facts)
    else:
        for name, value in facts.items():
            Console().print(f"{name:16} {value}", highlight=False, markup=False, soft_wrap=True)
    if strict and counts["missing"]:
        raise typer.Exit(1)


@contextmanager
def complaints(*, resumes: bool = False) -> Iterator[None]:
    """Turn errors that a user can correct into a message and an exit code.

    Args:
        resumes: Whether the command resumes after Ctrl-C instead of restarting.
    """
    try:
        yield
    except (DataError, SettingsError) as error:
        complain(str(error))
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "interrupted: the same command resumes after the finished files"
            if resumes
            else "interrupted: nothing was written, the same command restarts"
        )
        raise typer.Exit(130) from None


@contextmanager
def row_bars() -> Iterator[Told]:
    """Show a progress bar per file on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} rows"),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as bar:

        def show(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(escape(file), total=total)
            bar.update(tasks[file], completed=done)

        yield show


def _show(prepared: Prepared, as_json: bool, strict: bool, keep_bad: bool) -> None:
    summary = prepared.summary
    if as_json:
        facts = {
            "files": [str(file) for file in prepared.files],
            "report": str(prepared.report),
            "parts": prepared.parts,
            "parts_finished_before": prepared.found,
            **asdict(summary),
        }
        echo_json(facts)
    else:
        console = Console()
        before = f", {prepared.found} of them before" if prepared.found else ""
        console.print(
            f"{summary.written:,} of {summary.rows:,} rows from {prepared.parts} files{before}",
            highlight=False,
        )
        for change, count in sorted(summary.changes.items(), key=lambda entry: -entry[1]):
            console.print(f"  {count:>9,}  {escape(change)}", highlight=False)
        if summary.bad:
            action = "written unchanged" if keep_bad else "dropped"
            console.print(f"[yellow]{summary.bad:,} rows cannot be repaired, {action}:[/]")
            for fault in summary.faults:
                console.print(f"  {escape(fault)}", highlight=False, soft_wrap=True)
        for file in (*prepared.files, prepared.report):
            console.print(f"{file}", highlight=False, markup=False, soft_wrap=True)
    if strict and summary.bad:
        raise typer.Exit(1)
