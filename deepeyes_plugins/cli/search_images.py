"""``deepeyes search image-cache``: make and show the answers of the image provider ``cache``."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.cli.options import AsJson
from deepeyes_plugins.search.fetching import thumbnail_rules
from deepeyes_plugins.search.image_cache import ImageCache, ImageCacheError
from deepeyes_plugins.search.image_conversion import convert as convert_caches
from deepeyes_plugins.search.thumbnails import LONGEST_SIDE


def convert(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Published caches: DeepEyesV2's JSON, MMSearch-R1's pickle (which is read without "
            "running what is in it).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The new cache, a file.", show_default=False)
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder that the images' paths start from; by default the source's.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            help="Parquet file with the questions' images, so that answers are found by image too; "
            "repeatable.",
            show_default=False,
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch thumbnails that are web addresses.")
    ] = False,
    longest_side: Annotated[
        int, typer.Option(min=32, help="Pixels of a thumbnail at most.")
    ] = LONGEST_SIDE,
    as_json: AsJson = False,
) -> None:
    """Make a cache of those that are published; it appears when it is whole."""
    try:
        with Progress(console=Console(stderr=True)) as bar:
            tasks = {
                "answers": bar.add_task("answers", total=None),
                "images of questions": bar.add_task("images of questions", total=None),
            }
            counts = convert_caches(
                sources,
                output,
                images=images,
                questions=questions or (),
                rules=thumbnail_rules() if download else None,
                longest_side=longest_side,
                progress=lambda what, done, total: bar.update(
                    tasks[what], completed=done, total=total or None
                ),
            )
    except (ImageCacheError, OSError, sqlite3.Error) as error:
        complain(str(error))
    _show(output, dict(counts), as_json)


def info(
    cache: Annotated[Path, typer.Argument(help="The cache, a file.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show what a cache holds."""
    try:
        counts = ImageCache(cache).counts()
    except ImageCacheError as error:
        complain(str(error))
    _show(cache, counts, as_json)


def _show(path: Path, counts: dict[str, int], as_json: bool) -> None:
    facts = {"path": str(path), "bytes": path.stat().st_size, **counts}
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    console = Console()
    for name, value in facts.items():
        console.print(f"{name.replace('_', ' '):16} {value}", highlight=False)
