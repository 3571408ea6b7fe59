"""Look at all rows of data files: what is wrong with them, what they hold, what they share.

Several processes share the files; what each has finished is kept in a folder until the survey is
done, so that the same survey goes on after an interruption.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from deepeyes_plugins import __version__
from deepeyes_plugins.data.dataset_info import Entry
from deepeyes_plugins.data.files import (
    ROWS_AT_A_TIME,
    Row,
    cache_rows,
    parquet_rows,
    runs_of_row_groups,
    training_rows,
)
from deepeyes_plugins.data.findings import Finding
from deepeyes_plugins.data.hooks import formatters
from deepeyes_plugins.data.likeness import Hashes, duplicates, leaks
from deepeyes_plugins.data.looks import Kind, Look, LookRules, look_for
from deepeyes_plugins.data.pieces import (
    PIECE_ROWS,
    Piece,
    PieceWriter,
    pieces_in,
    problems_of,
    read_piece,
    writing,
)
from deepeyes_plugins.data.rl_checks import COLUMNS
from deepeyes_plugins.data.row_checks import form_findings, in_threads
from deepeyes_plugins.data.workers import Progress, Workers, alone, processes_worth
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.rewards.hooks import rewards

Role = Literal["train", "validation"]

_LAYOUT = 2
_ALL_DONE = "done"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A file to look at, what it is and what it is for.

    Attributes:
        path: The file.
        kind: What it is.
        role: What it is for.
        entry: Of a dataset_info.json that says how rows for SFT are read.
    """

    path: Path
    kind: Kind
    role: Role = "train"
    entry: Entry | None = None


@dataclass(slots=True)
class FileSurvey:
    """What was seen of a file; problems that it shares with other files are in its tally."""

    source: Source
    seen: Piece = field(default_factory=Piece)

    @property
    def ok(self) -> bool:
        """Whether all of it can be used."""
        return not self.seen.tally.count("error")


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a file that one process looks at; ``folder`` is where their pieces are."""

    source: Source
    folder: Path
    row_groups: range | None = None
    first_row: int = 1


def survey(
    sources: Sequence[Source],
    rules: LookRules,
    state: Path,
    *,
    processes: int | None = None,
    compare: bool = True,
    progress: Callable[[Source, int], None] = lambda source, rows: None,
    problem: Callable[[Source, dict[str, Any]], None] | None = None,
) -> list[FileSurvey]:
    """Look at files.

    Args:
        sources: The files.
        rules: How their rows are looked at.
        state: Folder that keeps what is done until all is.
        processes: That share the work; by default as many as there are processors, for little
            data one.
        compare: Whether duplicates and rows that validation files share are looked for.
        progress: Told of rows that are done, of those from an earlier run too; called from threads.
        problem: Is handed every problem, as a dictionary with row, level, key and reason.

    Raises:
        DataError: Something that images are relative to is missing; the state cannot be written;
            or a process was killed.
    """
    for source in sources:
        # What is missing is said before any work.
        look_for(source.kind, source.path, rules, source.entry)
    with ExitStack() as stack:
        folders = [state / _fingerprint(source, rules) for source in sources]
        for folder in sorted(set(folders)):
            with writing(folder):
                stack.enter_context(alone(folder))
        parts = {
            folder: list(_parts(source, folder))
            for source, folder in zip(sources, folders, strict=True)
        }
        count = processes or processes_worth(source.path for source in sources)
        count = min(count, sum(map(len, parts.values())))
        threads = max(1, len(os.sched_getaffinity(0)) // count)
        with Workers(count) as workers:
            futures = [
                workers.submit(
                    survey_part, part, rules, threads, progress=partial(progress, part.source)
                )
                for some in parts.values()
                for part in some
            ]
            for future in futures:
                future.result()
        pieces = [
            [path for part in parts[folder] for path in pieces_in(part.folder)]
            for folder in folders
        ]
        surveys = [FileSurvey(source) for source in sources]
        for one, paths in zip(surveys, pieces, strict=True):
            for path in paths:
                one.seen.merge(read_piece(path))
                for each in problems_of(path) if problem is not None else ():
                    assert problem is not None
                    problem(one.source, each)
            if not one.seen.rows and one.ok:
                _add(one, None, Finding("the file has no rows"), problem)
        if compare:
            _compare(surveys, pieces, problem)
        for folder in set(folders):
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
    return surveys


def survey_part(
    part: _Part, rules: LookRules, threads: int, progress: Progress = lambda rows: None
) -> None:
    """Look at a part of a file and write its pieces, those that are not there yet.

    Raises:
        DataError: A piece cannot be written, or what is looked at is gone.
    """
    with writing(part.folder):
        part.folder.mkdir(parents=True, exist_ok=True)
    whole = pieces_in(part.folder)
    done = [read_piece(path) for path in whole]
    progress(sum(piece.rows for piece in done))
    if (part.folder / _ALL_DONE).exists():
        return
    last = max((piece.last_row for piece in done), default=0)
    look = look_for(part.source.kind, part.source.path, rules, part.source.entry)

    def play(row: Row) -> Look:
        findings = form_findings(row)
        return Look(tuple(findings)) if findings else look(row.value)

    rows = (row for row in _rows(part) if row.number is None or row.number > last)
    number = len(whole)
    writer = PieceWriter(part.folder, number)
    untold = 0
    for row, seen in in_threads(rows, play, threads):
        # A second finding about a row stays with it.
        if writer.piece.rows >= PIECE_ROWS and row.number != writer.piece.last_row:
            writer.write()
            number += 1
            writer = PieceWriter(part.folder, number)
        writer.add(row.number, seen, counts=row.finding is None)
        untold += row.finding is None
        if untold == ROWS_AT_A_TIME:  # To tell of each row costs as much as to look at its columns.
            progress(untold)
            untold = 0
    progress(untold)
    writer.write()
    with writing(part.folder):
        (part.folder / _ALL_DONE).touch()


def together(surveys: Sequence[FileSurvey]) -> Piece:
    """Return the counts over all files."""
    total = Piece()
    for one in surveys:
        total.merge(one.seen)
    return total


def _rows(part: _Part) -> Iterator[Row]:
    path = part.source.path
    if part.source.kind == "rl":
        return parquet_rows(path, COLUMNS, part.row_groups, part.first_row)
    if part.source.kind == "search-cache":
        return cache_rows(path)
    return training_rows(path, None if part.source.entry is None else part.source.entry.form)


def _parts(source: Source, folder: Path) -> Iterator[_Part]:
    if source.kind != "rl":
        yield _Part(source, folder / "1")
        return
    for groups, first_row in runs_of_row_groups(source.path):
        yield _Part(source, folder / str(first_row), groups, first_row)


def _fingerprint(source: Source, rules: LookRules) -> str:
    """Name all that a result depends on; image files that rows name by path are not in it."""
    stat = source.path.stat()
    facts = {
        "file": [str(source.path.absolute()), stat.st_size, stat.st_mtime_ns, source.kind],
        "entry": repr(source.entry),
        "rules": repr(rules),
        "names": [sorted(names) for names in (environments(), rewards(), formatters())],
        "version": [_LAYOUT, __version__],
    }
    text = json.dumps(facts, default=str)
    return f"{source.path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _compare(
    surveys: Sequence[FileSurvey],
    pieces: Sequence[Sequence[Path]],
    problem: Callable[[Source, dict[str, Any]], None] | None,
) -> None:
    roles: dict[Role, list[FileSurvey]] = {"train": [], "validation": []}
    paths: dict[Role, list[tuple[Path, Sequence[Path]]]] = {"train": [], "validation": []}
    for one, some in zip(surveys, pieces, strict=True):
        if one.source.kind != "search-cache":
            roles[one.source.role].append(one)
            paths[one.source.role].append((one.source.path, some))
    hashes = {role: Hashes.read(some) for role, some in paths.items()}
    for role, of_role in roles.items():
        for file, row, finding in duplicates(hashes[role]):
            _add(of_role[file], row, finding, problem)
    for file, row, finding in leaks(hashes["train"], hashes["validation"]):
        _add(roles["train"][file], row, finding, problem)


def _add(
    one: FileSurvey,
    row: int | None,
    finding: Finding,
    problem: Callable[[Source, dict[str, Any]], None] | None,
) -> None:
    one.seen.tally.add(row, finding)
    if problem is not None:
        problem(one.source, {"row": row, **asdict(finding)})
