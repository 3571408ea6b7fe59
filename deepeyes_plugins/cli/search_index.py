"""``deepeyes search index``: make, show and search the index of the provider ``local``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.cli.options import AsJson
from deepeyes_plugins.search.corpus import Corpus, LocalIndexError

if TYPE_CHECKING:
    from deepeyes_plugins.search.index import Manifest

_SHOWN_CHARACTERS = 300

IndexFolder = Annotated[Path, typer.Argument(help="Folder of the index.", show_default=False)]


def build(
    corpus: Annotated[
        list[Path],
        typer.Argument(
            help="Files (JSON lines, Parquet, Markdown, text, HTML) and folders of such.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the index.", show_default=False)
    ],
    stemmer: Annotated[
        str,
        typer.Option(
            help="Language whose endings are removed from words, so that `eats` finds `eat`: "
            "english, german, french, …; by default none."
        ),
    ] = "",
    passage_characters: Annotated[
        int,
        typer.Option(min=100, help="Longest passage that a Markdown or HTML document is cut into."),
    ] = 1200,
    common_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="A word that more than this share of the passages has (and more than 10,000 of "
            "them) is looked up only where a query has no other; 1: every word is.",
        ),
    ] = 0.1,
    dense: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Make vectors too, for search by meaning: a sentence-transformers model, name or "
            "folder.",
        ),
    ] = "",
    query_prompt: Annotated[
        str, typer.Option(help="What that model wants before a query, for instance `query: `.")
    ] = "",
    passage_prompt: Annotated[
        str, typer.Option(help="What that model wants before a passage.")
    ] = "",
    memory_mb: Annotated[
        int, typer.Option(min=16, max=4000, help="MiB of postings that are held in memory.")
    ] = 1000,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of an index that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an index of a corpus.

    The index appears when it is whole: a build that is ended leaves what was there before.
    """
    with _complaints():
        from deepeyes_plugins.search.index import build as build_index

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[passages]:,} passages"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        started = time.monotonic()
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("building", total=1.0, passages=0)
            manifest = build_index(
                Corpus(corpus, passage_characters),
                output,
                stemmer=stemmer,
                common_share=common_share,
                memory_mb=memory_mb,
                model=dense,
                query_prompt=query_prompt,
                passage_prompt=passage_prompt,
                replace=replace,
                progress=lambda passages, share: bar.update(
                    task, completed=share, passages=passages
                ),
            )
        _show(output, manifest, as_json, seconds=round(time.monotonic() - started, 1))


def info(index: IndexFolder, as_json: AsJson = False) -> None:
    """Show what an index holds."""
    with _complaints():
        from deepeyes_plugins.search.index import Index

        _show(index, Index(index).manifest, as_json)


def query(
    index: IndexFolder,
    text: Annotated[str, typer.Argument(help="What to search for.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="Results at most.")] = 5,
    dense: Annotated[bool, typer.Option("--dense", help="By meaning instead of words.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search an index."""
    with _complaints():
        from deepeyes_plugins.search.index import Index

        opened = Index(index)
        started = time.perf_counter()
        hits = opened.search_dense(text, count) if dense else opened.search(text, count)
        seconds = time.perf_counter() - started
    if as_json:
        found = [
            {
                "id": hit.passage.id,
                "score": hit.score,
                "title": hit.passage.title,
                "link": hit.passage.link,
                "date": hit.passage.date,
                "text": hit.passage.text,
            }
            for hit in hits
        ]
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    console = Console()
    for place, hit in enumerate(hits, 1):
        passage = hit.passage
        text = " ".join(passage.text.split())
        short = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
        name = passage.title or passage.id
        console.print(f"{place}. [bold]{escape(name)}[/]  {hit.score:.2f}", highlight=False)
        console.print(f"   [dim]{escape(passage.link or passage.id)}[/]", highlight=False)
        console.print(f"   {escape(short)}", highlight=False)
    console.print(f"[dim]{len(hits)} results in {seconds * 1000:.1f} ms[/]", highlight=False)


def _show(path: Path, manifest: Manifest, as_json: bool, seconds: float | None = None) -> None:
    size = sum(file.stat().st_size for file in (path / manifest.data).iterdir())
    facts = manifest.model_dump() | {"path": str(path), "bytes": size}
    if seconds is not None:
        facts["seconds"] = seconds
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    took = "" if seconds is None else f" in {seconds} s"
    console = Console()
    console.print(f"{path}: {manifest.passages:,} passages, {size / 1e6:.0f} MB{took}")
    console.print(f"[dim]built {manifest.built} with {manifest.library}[/]", highlight=False)
    if manifest.skipped:
        console.print(
            f"[yellow]{manifest.skipped:,} rows or documents were left out;[/] the first: "
            f"{escape(manifest.first_fault)}",
            highlight=False,
        )


@contextmanager
def _complaints() -> Iterator[None]:
    """Turn what a user can mend into a message and exit status 1."""
    try:
        yield
    except LocalIndexError as error:
        complain(str(error))
