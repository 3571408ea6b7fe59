"""``deepeyes search image-cache``: create and inspect caches of the image provider ``cache``."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from deepeyes_plugins.cli.console import Console, echo_json
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
            metavar="PATH",
            help="Published caches: DeepEyesV2's JSON, MMSearch-R1's pickle (whose code is not "
            "run).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PATH", help="File of the new cache.", show_default=False
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Base folder of the images' paths; by default the folder of the source.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Parquet file with the questions' images, so that responses are found by image "
            "too; repeatable.",
            show_default=False,
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download thumbnails that are URLs.")
    ] = False,
    longest_side: Annotated[
        int, typer.Option(metavar="N", min=32, help="Maximum side of a thumbnail in pixels.")
    ] = LONGEST_SIDE,
    as_json: AsJson = False,
) -> None:
    """Convert published caches to one file, which appears when it is complete."""
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
    cache: Annotated[
        Path, typer.Argument(metavar="PATH", help="File of the cache.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Show the contents of a cache."""
    try:
        counts = ImageCache(cache).counts()
    except ImageCacheError as error:
        complain(str(error))
    _show(cache, counts, as_json)


def _show(path: Path, counts: dict[str, int], as_json: bool) -> None:
    facts = {"path": str(path), "bytes": path.stat().st_size, **counts}
    if as_json:
        echo_json(facts)
        return
    console = Console()
    for name, value in facts.items():
        console.print(f"{name.replace('_', ' '):16} {value}", highlight=False, markup=False)
