"""Resumable preparation, with one part per source file.

A part is written atomically, with a note of its inputs: a second run prepares only parts that are
missing or whose source, settings or result have changed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from deepeyes_plugins.data.check.rows import form_findings, in_threads
from deepeyes_plugins.data.content_hash import file_fingerprint, file_state
from deepeyes_plugins.data.files import ROWS_AT_A_TIME, Row, data_rows, row_count
from deepeyes_plugins.data.findings import DataError, Problem
from deepeyes_plugins.data.media import MediaPlaces
from deepeyes_plugins.data.output import one_at_a_time, whole_file, write_text
from deepeyes_plugins.data.prepare.changes import Outcome, report_lines
from deepeyes_plugins.data.sources import Progress
from deepeyes_plugins.data.writers import row_writer

REPORT_NAME = "report.ndjson"
"""Report of every change and every dropped row; its suffix is not that of data files."""

_WORK = ".prepare"
_LAYOUT = 2
_NAMED_FAULTS = 10


@dataclass(slots=True)
class Summary:
    """Counts of rows and changes.

    Attributes:
        rows: Rows read.
        written: Rows written.
        bad: Rows that could not be repaired.
        changes: Number of changes by ``key: reason``.
        faults: The first rows that could not be repaired, each with file, row and reason.
    """

    rows: int = 0
    written: int = 0
    bad: int = 0
    changes: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def count(self, change: str, times: int = 1) -> None:
        """Count a change; ``times`` may be 0."""
        if times:
            self.changes[change] = self.changes.get(change, 0) + times

    def add(self, other: Summary) -> None:
        """Add the counts of ``other``."""
        self.rows += other.rows
        self.written += other.written
        self.bad += other.bad
        for change, count in other.changes.items():
            self.count(change, count)
        self.faults = (self.faults + other.faults)[:_NAMED_FAULTS]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Result of a preparation.

    Attributes:
        files: Files for training.
        report: Every change, as JSON lines.
        summary: Summary of all parts, including those of earlier runs.
        parts: Number of parts.
        found: Number of parts finished by earlier runs.
    """

    files: tuple[Path, ...]
    report: Path
    summary: Summary
    parts: int
    found: int


@dataclass(slots=True)
class Note:
    """Note about a finished part.

    Attributes:
        summary: Summary of its rows.
        first_image: Start and length, in bytes, of the first line with images.
        mark: Fingerprint of its inputs.
        states: Size and modification time of its files, to detect changes.
    """

    summary: Summary
    first_image: tuple[int, int] | None = None
    mark: str = ""
    states: tuple[tuple[int, int], ...] = ()


_NOTE = TypeAdapter(Note)


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one source file.

    Attributes:
        target: File of the repaired rows.
        changes: File of the changes, as JSON lines.
        note: Note about the part.
        found: Whether an earlier run finished it.
    """

    target: Path
    changes: Path
    note: Note
    found: bool


class _UnreadableError(DataError):
    """A source cannot be read to its end."""


@contextmanager
def working_in(output: Path, name: str) -> Iterator[Path]:
    """Lock ``output`` and yield a folder in it for unfinished work.

    Raises:
        DataError: Another process holds the lock, or the folder cannot be written.
    """
    with one_at_a_time(output / _WORK / "lock"):
        yield output / _WORK / name


def make_parts(
    files: Mapping[Path, Path],
    work: Path,
    repair: Callable[[Mapping[str, Any]], Outcome],
    settings: Sequence[Any],
    *,
    keep_bad: bool,
    progress: Progress,
    schema: pa.Schema | None = None,
) -> list[Part]:
    """Prepare the missing parts.

    Args:
        files: Output file by source file.
        work: Folder for notes and changes.
        repair: Repairs a row.
        settings: All inputs of ``repair``, for fingerprints.
        keep_bad: Whether to write rows that cannot be repaired, if they fit the schema.
        progress: Called with file, number of rows done, and total rows if known.
        schema: Schema for parquet; ``None`` for JSON lines.

    Raises:
        DataError: A part cannot be written, or sources cannot be read to their end; the latter is
            raised after all other parts are finished.
    """
    parts, unreadable = [], []
    for file, target in files.items():
        changes, place = work / f"{target.stem}.changes", work / f"{target.stem}.json"
        mark = mark_of(file, [*settings, keep_bad, str(schema)])
        note = recall(place, mark, target, changes)
        found = note is not None
        if note is None:
            try:
                note = _make(file, target, changes, repair, keep_bad, progress, schema)
            except _UnreadableError as error:
                unreadable.append(str(error))
                continue
            remember(place, mark, note, target, changes)
        parts.append(Part(target, changes, note, found))
    if unreadable:
        raise DataError("\n".join(unreadable))
    return parts


def _make(
    file: Path,
    target: Path,
    changes: Path,
    repair: Callable[[Mapping[str, Any]], Outcome],
    keep_bad: bool,
    progress: Progress,
    schema: pa.Schema | None,
) -> Note:
    summary = Summary()
    total = None if schema is None else row_count(file)

    def outcome(row: Row) -> Outcome:
        if row.finding is not None:
            raise _UnreadableError(str(Problem(file, row.number, "", row.finding.reason, "error")))
        if faults := form_findings(row):
            return Outcome(None, faults=faults)
        result = repair(row.value)
        if schema is not None and result.row is not None and result.faults:
            try:
                pa.RecordBatch.from_pylist([result.row], schema)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                result.row = None
        return result

    with ExitStack() as stack:
        log = stack.enter_context(whole_file(changes))
        lines = stack.enter_context(log.open("w", encoding="utf-8"))
        writer = stack.enter_context(row_writer(target, schema))
        for row, result in in_threads(data_rows(file), outcome):
            kept = result.row is not None and (keep_bad or not result.faults)
            if kept and result.row is not None:
                writer.write(result.row)
            summary.rows += 1
            summary.written += kept
            summary.bad += bool(result.faults)
            for change in result.changes:
                summary.count(f"{change.key}: {change.reason}")
            if result.faults and len(summary.faults) < _NAMED_FAULTS:
                summary.faults.append(f"{file}, row {row.number}: {result.faults[0]}")
            lines.write(report_lines(str(file), row.number, result, kept=kept))
            if summary.rows % ROWS_AT_A_TIME == 0:
                progress(file.name, summary.rows, total)
        progress(file.name, summary.rows, total)
    return Note(summary, writer.first_image)


def summed(parts: Iterable[Part]) -> Summary:
    """Return the summary of all parts.

    Raises:
        DataError: No row was written.
    """
    summary = Summary()
    for part in parts:
        summary.add(part.note.summary)
    if not summary.written:
        raise DataError("\n".join([f"none of {summary.rows} rows can be used", *summary.faults]))
    return summary


def write_report(report: Path, parts: Iterable[Part]) -> None:
    """Join the changes of all parts.

    Raises:
        DataError: It cannot be written.
    """
    with whole_file(report) as partial, partial.open("wb") as joined:
        for part in parts:
            with part.changes.open("rb") as source:
                shutil.copyfileobj(source, joined, 1 << 20)


def mark_of(file: Path, settings: Sequence[Any]) -> str:
    """Return a fingerprint of a part's inputs, except image files in folders."""
    return file_fingerprint(file, _LAYOUT, settings)


def describe_places(places: MediaPlaces) -> list[Any]:
    """Return media paths and versions of zip files, for fingerprints."""
    return [str(places), [file_state(place.archive) for place in places.places if place.archive]]


def recall(place: Path, mark: str, *files: Path) -> Note | None:
    """Return the note of a finished part if its inputs and files are unchanged."""
    try:
        note = _NOTE.validate_json(place.read_bytes())
        return note if (note.mark, note.states) == (mark, tuple(map(file_state, files))) else None
    except (OSError, ValueError):
        return None


def remember(place: Path, mark: str, note: Note, *files: Path) -> None:
    """Write the note of finished files.

    Raises:
        DataError: It cannot be written.
    """
    note.mark, note.states = mark, tuple(map(file_state, files))
    write_text(place, _NOTE.dump_json(note).decode())
