"""``deepeyes search index``: build, inspect and search indexes of the provider ``local``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deepeyes_plugins.cli.console import Console, echo_json
from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.cli.options import AsJson
from deepeyes_plugins.search.corpus import Corpus, LocalIndexError

if TYPE_CHECKING:
    from deepeyes_plugins.search.index import Manifest

_SHOWN_CHARACTERS = 300

IndexFolder = Annotated[
    Path, typer.Argument(metavar="INDEX", help="Folder of the index.", show_default=False)
]


def build(
    corpus: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            help="Files (JSON lines, Parquet, Markdown, text, HTML) and folders of them.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PATH", help="Folder of the index.", show_default=False
        ),
    ],
    stemmer: Annotated[
        str,
        typer.Option(
            metavar="LANGUAGE",
            help="Stemmer, so that `eats` finds `eat`: english, german, french, …; by default "
            "none.",
        ),
    ] = "",
    passage_characters: Annotated[
        int,
        typer.Option(
            metavar="N", min=100, help="Maximum length of a passage of a Markdown or HTML document."
        ),
    ] = 1200,
    common_share: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=1,
            help="A word in more than this share of the passages (and in more than 10,000) is "
            "used only in queries without other words; 1: use every word.",
        ),
    ] = 0.1,
    dense: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Add vectors for dense retrieval by a sentence-transformers model, a name or a "
            "folder.",
        ),
    ] = "",
    query_prompt: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="Prompt of that model before a query, for instance `query: `."
        ),
    ] = "",
    passage_prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="Prompt of that model before a passage.")
    ] = "",
    memory_mb: Annotated[
        int, typer.Option(metavar="N", min=16, max=4000, help="Memory for postings, in MiB.")
    ] = 1000,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing index.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build an index of a corpus.

    The index appears when it is complete; an interrupted build leaves an existing index unchanged.
    """
    with _errors_reported():
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
    """Show the contents of an index."""
    with _errors_reported():
        from deepeyes_plugins.search.index import Index

        _show(index, Index(index).manifest, as_json)


def query(
    index: IndexFolder,
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="Text of the query.", show_default=False)
    ],
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Maximum number of results.")] = 5,
    dense: Annotated[bool, typer.Option("--dense", help="Rank by vectors, not by words.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search an index."""
    with _errors_reported():
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
        echo_json(found)
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
        echo_json(facts)
        return
    took = "" if seconds is None else f" in {seconds} s"
    console = Console()
    facts_line = f"{path}: {manifest.passages:,} passages, {size / 1e6:.0f} MB{took}"
    console.print(facts_line, markup=False)
    console.print(
        f"[dim]built {escape(manifest.built)} with {escape(manifest.library)}[/]", highlight=False
    )
    if manifest.skipped:
        console.print(
            f"[yellow]{manifest.skipped:,} rows or documents were skipped;[/] the first: "
            f"{escape(manifest.first_fault)}",
            highlight=False,
        )


@contextmanager
def _errors_reported() -> Iterator[None]:
    """Print index errors and exit with status 1."""
    try:
        yield
    except LocalIndexError as error:
        complain(str(error))
