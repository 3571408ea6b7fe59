"""``deepeyes data check`` and ``deepeyes data stats``: problems and statistics of data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from deepeyes_plugins.cli.console import Console, echo_json
from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.data.check.checkpoints import Checkpoint
from deepeyes_plugins.data.check.rl import RowRules
from deepeyes_plugins.data.check.row import CheckRules, Kind
from deepeyes_plugins.data.check.scan import FileCheck, Role, Source, merged, scan
from deepeyes_plugins.data.dataset_info import DATASET_INFO, entries_at
from deepeyes_plugins.data.files import row_count
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.kinds import files_in, kind_of_file
from deepeyes_plugins.data.output import refuse_inputs, whole_file
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.settings import load_settings

CANNOT_BE_CHECKED = 2
INTERRUPTED = 130
_BAR_WIDTH = 40

Paths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH", help="Data files or folders of them.", show_default=False),
]
KindOption = Annotated[
    str | None,
    typer.Option(
        "--kind", metavar="KIND", help="sft, rl or search-cache. [default: by the file's content]"
    ),
]
DatasetOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Entry of the dataset_info.json at a path; repeatable. [default: entries of the "
        "file, or all of a folder]",
    ),
]
MediaOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH", help="Folder that image paths are relative to; for SFT also a zip file."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="agent.yaml with environment and rewards. [default: $DEEPEYES_AGENT_CONFIG]",
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Count tokens with this model (folder or name)."),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Number of processes. [default: one per processor]"),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Folder for the checkpoints of a run. [default: ~/.cache/deepeyes/data]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON without a progress bar.")]


def check(
    paths: Paths,
    validation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Validation files; training data must not contain their rows. Repeatable.",
        ),
    ] = None,
    dataset: DatasetOption = None,
    kind: KindOption = None,
    media_root: MediaOption = None,
    config: ConfigOption = None,
    tokenizer: TokenizerOption = None,
    max_prompt_length: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum tokens of an RL prompt.")
    ] = 8192,
    cutoff_len: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum tokens of an SFT row.")
    ] = 20480,
    opening: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="Required beginning of assistant turns in SFT data; may be empty."
        ),
    ] = CheckRules().opening,
    problems: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write every problem here, as JSON lines.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="PATH", help="Write an HTML report here.")
    ] = None,
    processes: ProcessesOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check data for SFT and RL and image-search caches before training.

    Files named by a dataset_info.json in their folder are read as its entry says.

    Exit code: 0 without errors, 1 with errors, 2 if something cannot be checked. The same command
    resumes an interrupted check.
    """
    try:
        rules = _rules(config, media_root, tokenizer, max_prompt_length, cutoff_len, opening)
        sources = _sources(paths, kind, "train", dataset or ())
        sources += _sources(validation, kind, "validation") if validation else []
        refuse_inputs(filter(None, (problems, html)), (source.path for source in sources))
        with ExitStack() as stack:
            # Opened first, so that a read-only folder is an error before any work.
            page = None if html is None else stack.enter_context(whole_file(html))
            write: Callable[[Source, dict[str, Any]], None] | None = None
            if problems is not None:
                partial = stack.enter_context(whole_file(problems))
                file = stack.enter_context(partial.open("w", encoding="utf-8"))

                def write(source: Source, problem: dict[str, Any]) -> None:
                    line = json.dumps({"file": str(source.path), **problem}) + "\n"
                    try:
                        file.write(line)
                    except OSError as error:
                        raise DataError(f"{problems} cannot be written: {error}") from error

            checks = _scan(sources, rules, state, processes, as_json, write)
            if as_json:
                facts = [_facts(one) for one in checks]
                echo_json(facts)
            else:
                console = Console()
                for one in checks:
                    _show_problems(console, one)
                _show_statistics(console, merged(checks))
            if page is not None:
                from deepeyes_plugins.data.check.html_report import render

                page.write_text(render(checks), encoding="utf-8")
    except (DataError, SettingsError, OSError) as error:
        _complain(str(error))
    raise typer.Exit(0 if all(one.ok for one in checks) else 1)


def stats(
    paths: Paths,
    dataset: DatasetOption = None,
    kind: KindOption = None,
    media_root: MediaOption = None,
    config: ConfigOption = None,
    tokenizer: TokenizerOption = None,
    processes: ProcessesOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print statistics of data: sources, environments, turns, images, lengths, answers.

    Reads only the headers of images. Unreadable rows are counted and skipped.
    """
    try:
        rules = _rules(config, media_root, tokenizer, 8192, 20480, "", decode=False)
        sources = _sources(paths, kind, "train", dataset or ())
        checks = _scan(sources, rules, state, processes, as_json, None, compare=False)
    except (DataError, SettingsError, OSError) as error:
        _complain(str(error))
    total = merged(checks)
    if as_json:
        facts = {"rows": total.rows, "bad_rows": total.bad_rows, **total.statistics.summary()}
        echo_json(facts)
    else:
        _show_statistics(Console(), total)


def _rules(
    config: Path | None,
    media_root: Path | None,
    tokenizer: str | None,
    prompt_tokens: int,
    conversation_tokens: int,
    opening: str,
    *,
    decode: bool = True,
) -> CheckRules:
    settings = load_settings(config)
    tokens = None
    if tokenizer is not None:
        from deepeyes_plugins.hosts.transformers.token_counter import ModelTokenCounter

        tokens = ModelTokenCounter(tokenizer)
        tokens.load()
    rows = RowRules(settings.environment, settings.rewards.sources, media_root)
    return CheckRules(
        rows, media_root, "deepeyes", opening, decode, tokens, prompt_tokens, conversation_tokens
    )


def _sources(
    paths: Sequence[Path], kind: str | None, role: Role, datasets: Sequence[str] = ()
) -> list[Source]:
    """Find files and their entries of dataset_info.json.

    Raises:
        DataError: There is nothing to check, or an entry is not supported.
    """
    kinds: dict[str, Kind] = {"sft": "sft", "rl": "rl", "search-cache": "search-cache"}
    if kind is not None and kind not in kinds:
        raise DataError(f"--kind {kind}: it can be {', '.join(kinds)}")
    if kind in ("rl", "search-cache"):
        return [Source(path, kinds[kind], role) for path in files_in(paths)]
    sources: list[Source] = []
    for path in paths:
        entries = entries_at(path, datasets)
        found = [
            Source(file, "sft", role, entry) for entry in entries for file in files_in([entry.path])
        ]
        if not datasets and path.name != DATASET_INFO:
            named = {source.path.resolve() for source in found}
            found += (
                Source(file, kind_of_file(file) if kind is None else kinds[kind], role)
                for file in files_in([path], may_be_empty=bool(found))
                if file.resolve() not in named
            )
        sources += found
    known = {source.entry.name for source in sources if source.entry}
    if unknown := [name for name in datasets if name not in known]:
        raise DataError(
            f"--dataset {unknown[0]}: no {DATASET_INFO} at these paths has such an entry with a "
            "supported formatting"
        )
    if not sources:
        raise DataError(f"no supported data set in {', '.join(map(str, paths))}")
    return sources


def _scan(
    sources: list[Source],
    rules: CheckRules,
    state: Path | None,
    processes: int | None,
    quiet: bool,
    problem: Callable[[Source, dict[str, Any]], None] | None,
    *,
    compare: bool = True,
) -> list[FileCheck]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    state = state or cache / "deepeyes" / "data"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} rows"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        tasks: dict[Source, TaskID] = {
            source: bar.add_task(
                escape(source.path.name),
                total=row_count(source.path) if source.kind == "rl" else None,
            )
            for source in sources
        }
        try:
            return scan(
                sources,
                rules,
                state,
                processes=processes,
                compare=compare,
                progress=lambda source, rows: bar.advance(tasks[source], rows),
                problem=problem,
            )
        except OSError as error:
            raise DataError(str(error)) from error
        except KeyboardInterrupt:
            bar.stop()
            Console(stderr=True).print(
                f"interrupted; the same command resumes from the checkpoints in {state}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            raise typer.Exit(INTERRUPTED) from None


def _facts(one: FileCheck) -> dict[str, Any]:
    counts = one.counts
    return {
        "file": str(one.source.path),
        "kind": one.source.kind,
        "role": one.source.role,
        "dataset": None if one.source.entry is None else one.source.entry.name,
        "ok": one.ok,
        "rows": counts.rows,
        "bad_rows": counts.bad_rows,
        "long_rows": counts.long_rows,
        "problems": [asdict(kind) for kind in counts.problem_counts.kinds],
        "statistics": counts.statistics.summary(),
    }


def _show_problems(console: Console, one: FileCheck) -> None:
    counts = one.counts
    verdict = "[green]fine[/]" if one.ok else "[red]has errors[/]"
    read_as = ""
    if one.source.entry is not None:
        read_as = f", as {one.source.entry.name} of {one.source.entry.info.name}"
    what = escape(f"{one.source.path} ({one.source.kind}, {one.source.role}{read_as})")
    console.print(
        f"{what}: {verdict}; "
        f"{counts.rows:,} rows, {counts.bad_rows:,} cannot be used, "
        f"{counts.long_rows:,} are too long",
        highlight=False,
        soft_wrap=True,
    )
    if not counts.problem_counts.kinds:
        return
    table = Table("", "count", "column", "first at row", "what")
    for entry in sorted(counts.problem_counts.kinds, key=lambda entry: (entry.level, -entry.count)):
        first = entry.examples[0]
        colour = "red" if entry.level == "error" else "yellow"
        row = "" if first.row is None else str(first.row)
        table.add_row(
            f"[{colour}]{entry.level}[/]",
            f"{entry.count:,}",
            escape(entry.key),
            row,
            escape(first.reason),
        )
    console.print(table)


def _show_statistics(console: Console, total: Checkpoint) -> None:
    table = Table("what", "values", title=f"{total.rows:,} rows, {total.bad_rows:,} unusable")
    distributions = Table("distribution", "least", "median", "mean", "95 %", "99 %", "most")
    for name, values in total.statistics.summary().items():
        title = name.replace("_", " ")
        if "median" in values:
            if values["count"]:
                keys = ("minimum", "median", "mean", "p95", "p99", "maximum")
                distributions.add_row(title, *(f"{values[key]:,}" for key in keys))
        elif values:
            shown = list(values.items())[:12]
            text = ", ".join(f"{escape(key)}: {count:,}" for key, count in shown)
            table.add_row(title, text + (" …" if len(values) > len(shown) else ""))
    console.print(table)
    console.print(distributions)
    for name in ("tokens", "pixels"):
        distribution = getattr(total.statistics, name)
        bins = distribution.bins(12)
        if len(bins) > 1:
            most = max(count for *_, count in bins)
            console.print(f"{name} of {'images' if name == 'pixels' else 'rows'}")
            for low, high, count in bins:
                bar = "█" * round(_BAR_WIDTH * count / most)
                console.print(f"{low:>12,} to {high - 1:>12,} {bar} {count:,}", highlight=False)


def _complain(message: str) -> NoReturn:
    """Print an error and exit with status 2."""
    complain(message, CANNOT_BE_CHECKED)
