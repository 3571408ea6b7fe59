"""``deepeyes reward score``: score trajectory logs as in training."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.table import Table

from deepeyes_plugins.cli.console import Console, echo_json
from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.cli.progress import progress
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.rl_rows import task_from_row
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.jobs import Advance
from deepeyes_plugins.plugins import PluginError
from deepeyes_plugins.rewards.offline import (
    Outcome,
    Reference,
    ScoreRecord,
    fingerprint,
    log_files,
    score_log,
)
from deepeyes_plugins.rewards.scorer import Scorer, configured_judge
from deepeyes_plugins.selection.questions import read_rows
from deepeyes_plugins.settings import AgentSettings, load_settings

SHOWN_PARTS = ("acc", "format", "tool", "judged", "undecided", "answered")
NAMED_LINES = 20
"""Maximum number of lines without a score that are listed."""


async def score_logs(
    paths: Sequence[Path],
    output: Path,
    settings: AgentSettings,
    references: Mapping[tuple[str, str], Reference],
    *,
    concurrency: int,
    restart: bool = False,
    leave_out: Container[str] = frozenset(),
    advance: Advance | None = None,
) -> tuple[list[Outcome], list[ScoreRecord]]:
    """Score logs with agent.yaml; see :func:`~deepeyes_plugins.rewards.offline.score_log`."""
    scorer = Scorer(settings.rewards, configured_judge(settings.judge), settings.plugins)
    async with aclosing(scorer):
        return await score_log(
            paths,
            output,
            scorer,
            fingerprint(settings.rewards, settings.judge, settings.plugins),
            references,
            concurrency=concurrency,
            restart=restart,
            leave_out=leave_out,
            advance=advance,
        )


def score(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A trajectory log, or a folder with trajectories.jsonl files."
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="agent.yaml with rewards and judge. [default: $DEEPEYES_AGENT_CONFIG]",
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Parquet with reference answers by data source and task id, to add or correct "
            "those of the log. Repeatable.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="File for scores, as JSON lines. [default: <log>.scores.jsonl, or scores.jsonl in "
            "the folder]",
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, metavar="N", help="Trajectories scored concurrently.")
    ] = 64,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard existing scores instead of resuming.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON without a progress bar.")
    ] = False,
) -> None:
    """Score trajectory logs with the rewards, judge and settings of training.

    The same command resumes an interrupted run. Lines that are not trajectories or lack a reference
    answer are listed and counted. The exit code is 1 if scoring failed for some trajectories, for
    instance because the judge is unavailable.
    """
    console = Console(stderr=True)
    try:
        settings = load_settings(config)
        paths = log_files(log)
        references = read_references(data or [])
        path = output or (
            log / "scores.jsonl" if log.is_dir() else log.with_suffix(".scores.jsonl")
        )
        with progress("scoring", console, show=not as_json) as advance:
            outcomes, records = asyncio.run(
                score_logs(
                    paths,
                    path,
                    settings,
                    references,
                    concurrency=concurrency,
                    restart=restart,
                    advance=advance,
                )
            )
    except (OSError, DataError, RowError, SettingsError, PluginError) as error:
        complain(str(error))
    except KeyboardInterrupt:
        console.print("Interrupted. The same command resumes the run.")
        raise typer.Exit(130) from None

    summary = summarize(records, outcomes)
    if as_json:
        echo_json({**summary, "output": str(path)})
    else:
        Console().print(_table(summary))
        console.print(f"Scores: {path}", highlight=False, markup=False, soft_wrap=True)
        for outcome in outcomes[:NAMED_LINES]:
            console.print(
                f"{outcome.kind}: {outcome.place}: {outcome.reason}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        if len(outcomes) > NAMED_LINES:
            console.print(f"… and {len(outcomes) - NAMED_LINES} more")
    if any(outcome.kind == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def read_references(
    files: Iterable[Path], *, skip_bad: bool = False
) -> dict[tuple[str, str], Reference]:
    """Read the reference answers of parquet files, a few rows at a time.

    Args:
        files: The files.
        skip_bad: Whether to skip rows that cannot be read.

    Raises:
        RowError: A row cannot be read, or two rows of one name differ in their reference.
        DataError: A file cannot be read; it is named.
    """
    found: dict[tuple[str, str], Reference] = {}
    for path, number, row in read_rows(files):
        try:
            task = task_from_row(row)
        except RowError as error:
            if skip_bad:
                continue
            raise RowError(f"{path}, row {number}: {error}") from error
        key = (task.data_source, task.id)
        known = Reference(task.ground_truth, task.question)
        if found.setdefault(key, known).ground_truth != known.ground_truth:
            raise RowError(
                f"{path}, row {number}: another row of data source {key[0]!r} has the "
                f"id {key[1]!r} and another answer. Give only the file that was played"
            )
    return found


def summarize(records: Iterable[ScoreRecord], left: Iterable[Outcome]) -> dict[str, Any]:
    """Summarise scores per data source, with the lines that have none."""
    by_source: defaultdict[str, list[ScoreRecord]] = defaultdict(list)
    for record in records:
        by_source[record.data_source].append(record)
    left = list(left)
    kinds = Counter(outcome.kind for outcome in left)
    return {
        "sources": {
            source: {
                "trajectories": len(found),
                "score": fmean(record.score for record in found),
                "parts": {
                    name: fmean(record.parts.get(name, 0.0) for record in found)
                    for name in found[0].parts
                },
            }
            for source, found in sorted(by_source.items())
        },
        "scored": sum(map(len, by_source.values())),
        "bad": kinds["bad"],
        "unplayed": kinds["unplayed"],
        "failed": kinds["failed"],
        "lines_without_score": [
            {"where": str(outcome.place), "kind": outcome.kind, "reason": outcome.reason}
            for outcome in left
        ],
    }


def _table(summary: dict[str, Any]) -> Table:
    table = Table(
        "data source", "trajectories", "score", *SHOWN_PARTS, box=None, header_style="bold"
    )
    for source, row in summary["sources"].items():
        parts = (f"{row['parts'].get(name, 0.0):.3f}" for name in SHOWN_PARTS)
        table.add_row(source, str(row["trajectories"]), f"{row['score']:.3f}", *parts)
    table.caption = "scored {scored}, bad lines {bad}, unplayed {unplayed}, failed {failed}".format(
        **summary
    )
    table.caption_justify = "left"
    return table
