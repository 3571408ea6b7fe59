"""Measures search: a table, and a JSON file with the same figures.

    python benchmarks/search.py                  # everything; a million passages take minutes
    python benchmarks/search.py --only images

What is made for a measure (a corpus, an index) stays in the folder and is used again; a new folder
measures the build too.
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from searching import images, local
from searching.figures import Figure, show

DEFAULT_FOLDER = Path(__file__).parents[1] / "runs" / "benchmarks"

MEASURES: Mapping[str, Callable[[Path, int], list[Figure]]] = {
    "local": local.measure,
    "images": lambda folder, passages: images.measure(folder),
}


def main(
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"Take this measure only; repeatable: {', '.join(MEASURES)}."),
    ] = None,
    passages: Annotated[int, typer.Option(min=1000, help="Passages of the index.")] = 1_000_000,
    folder: Annotated[Path, typer.Option(help="For corpora and indexes.")] = (
        DEFAULT_FOLDER / "search"
    ),
    json_path: Annotated[Path, typer.Option("--json", help="Where the figures go.")] = (
        DEFAULT_FOLDER / "search.json"
    ),
) -> None:
    """Measures search."""
    for name in only or []:
        if name not in MEASURES:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(MEASURES)}")
    folder.mkdir(parents=True, exist_ok=True)
    figures = [
        figure
        for name, measure in MEASURES.items()
        if not only or name in only
        for figure in measure(folder, passages)
    ]
    document = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "passages": passages,
        "figures": [asdict(figure) | {"reached": figure.reached} for figure in figures],
    }
    json_path.parent.mkdir(parents=True, exist_ok=True)
    json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    show(figures, Console(width=None if Console().is_terminal else 120))


if __name__ == "__main__":
    typer.run(main)
