"""Parallel, resumable scan of data files: problems, statistics, duplicates and leakage.

Processes write checkpoints to a folder until the scan is complete; an interrupted scan resumes
from them.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from deepeyes_plugins.data.check.checkpoints import (
    CHECKPOINT_ROWS,
    Checkpoint,
    CheckpointWriter,
    checkpoints_in,
    problems_of,
    read_checkpoint,
    writing,
)
from deepeyes_plugins.data.check.deduplication import Hashes, duplicates, leaks
from deepeyes_plugins.data.check.rl import COLUMNS
from deepeyes_plugins.data.check.row import CheckRules, Kind, RowCheck, row_checker
from deepeyes_plugins.data.check.rows import form_findings, in_threads
from deepeyes_plugins.data.content_hash import file_fingerprint
from deepeyes_plugins.data.dataset_info import Entry, media_roots
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
from deepeyes_plugins.data.media import named_roots
from deepeyes_plugins.data.workers import Progress, Workers, alone, processes_worth
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.files import owner_only_folder
from deepeyes_plugins.rewards.hooks import rewards

Role = Literal["train", "validation"]

_LAYOUT = 3
"""Version of the checkpoint format."""
_ALL_DONE = "done"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A file to check.

    Attributes:
        path: The file.
        kind: Kind of its data.
        role: Training or validation.
        entry: Entry of dataset_info.json that describes SFT rows.
    """

    path: Path
    kind: Kind
    role: Role = "train"
    entry: Entry | None = None


@dataclass(slots=True)
class FileCheck:
    """Result of a file; its counts include problems found by comparison with other files."""

    source: Source
    counts: Checkpoint = field(default_factory=Checkpoint)

    @property
    def ok(self) -> bool:
        """Whether the file has no errors."""
        return not self.counts.problem_counts.count("error")


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a file that one process checks; ``folder`` holds their checkpoints."""

    source: Source
    folder: Path
    row_groups: range | None = None
    first_row: int = 1


def scan(
    sources: Sequence[Source],
    rules: CheckRules,
    state: Path,
    *,
    processes: int | None = None,
    compare: bool = True,
    progress: Callable[[Source, int], None] = lambda source, rows: None,
    problem: Callable[[Source, dict[str, Any]], None] | None = None,
) -> list[FileCheck]:
    """Check files.

    Args:
        sources: The files.
        rules: How rows are checked.
        state: Folder for checkpoints, which are removed when the scan is complete.
        processes: Number of processes; by default one per processor, or one for little data.
        compare: Whether to find duplicates and rows shared with validation files.
        progress: Called from threads with the number of rows done, including restored ones.
        problem: Called with every problem: a dictionary with row, level, key and reason.

    Raises:
        DataError: A media folder is missing, the state cannot be written, or a process was
            killed.
    """
    for source in sources:
        # Fail before any work if a folder is missing.
        row_checker(source.kind, source.path, rules, source.entry)
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
                    scan_part, part, rules, threads, progress=partial(progress, part.source)
                )
                for some in parts.values()
                for part in some
            ]
            for future in futures:
                future.result()
        checkpoints = [
            [path for part in parts[folder] for path in checkpoints_in(part.folder)]
            for folder in folders
        ]
        checks = [FileCheck(source) for source in sources]
        for one, paths in zip(checks, checkpoints, strict=True):
            for path in paths:
                one.counts.merge(read_checkpoint(path))
                for each in problems_of(path) if problem is not None else ():
                    assert problem is not None
                    problem(one.source, each)
            if not one.counts.rows and one.ok:
                _add(one, None, Finding("the file has no rows"), problem)
        if compare:
            _compare(checks, checkpoints, problem)
        for folder in set(folders):
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
    return checks


def scan_part(
    part: _Part, rules: CheckRules, threads: int, progress: Progress = lambda rows: None
) -> None:
    """Check a part of a file and write its missing checkpoints.

    Raises:
        DataError: A checkpoint cannot be written, or the file is gone.
    """
    with writing(part.folder):
        for folder in (part.folder.parent, part.folder):
            owner_only_folder(folder)
    whole = checkpoints_in(part.folder)
    done = [read_checkpoint(path) for path in whole]
    progress(sum(piece.rows for piece in done))
    if (part.folder / _ALL_DONE).exists():
        return
    last = max((piece.last_row for piece in done), default=0)
    check = row_checker(part.source.kind, part.source.path, rules, part.source.entry)

    def check_row(row: Row) -> RowCheck:
        findings = form_findings(row)
        return RowCheck(tuple(findings)) if findings else check(row.value)

    rows = (row for row in _rows(part) if row.number is None or row.number > last)
    number = len(whole)
    writer = CheckpointWriter(part.folder, number)
    unreported = 0
    for row, result in in_threads(rows, check_row, threads):
        # All findings about a row go into one checkpoint.
        if writer.checkpoint.rows >= CHECKPOINT_ROWS and row.number != writer.checkpoint.last_row:
            writer.write()
            number += 1
            writer = CheckpointWriter(part.folder, number)
        writer.add(row.number, result, counts=row.finding is None)
        unreported += row.finding is None
        if unreported == ROWS_AT_A_TIME:  # Reporting single rows is as slow as checking them.
            progress(unreported)
            unreported = 0
    progress(unreported)
    writer.write()
    with writing(part.folder):
        (part.folder / _ALL_DONE).touch()


def merged(checks: Sequence[FileCheck]) -> Checkpoint:
    """Return the counts over all files."""
    total = Checkpoint()
    for one in checks:
        total.merge(one.counts)
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


def _fingerprint(source: Source, rules: CheckRules) -> str:
    """Return a name that changes with every input of the result, except image files."""
    named = [repr(source.entry), repr(rules), *named_roots(), *media_roots(source.path)]
    names = [sorted(names) for names in (environments(), rewards(), formatters())]
    found = file_fingerprint(source.path, _LAYOUT, source.kind, named, names)
    return f"{source.path.stem}-{found}"


def _compare(
    checks: Sequence[FileCheck],
    checkpoints: Sequence[Sequence[Path]],
    problem: Callable[[Source, dict[str, Any]], None] | None,
) -> None:
    roles: dict[Role, list[FileCheck]] = {"train": [], "validation": []}
    paths: dict[Role, list[tuple[Path, Sequence[Path]]]] = {"train": [], "validation": []}
    for one, some in zip(checks, checkpoints, strict=True):
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
    one: FileCheck,
    row: int | None,
    finding: Finding,
    problem: Callable[[Source, dict[str, Any]], None] | None,
) -> None:
    one.counts.problem_counts.add(row, finding)
    if problem is not None:
        problem(one.source, {"row": row, **asdict(finding)})
