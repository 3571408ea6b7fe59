"""Make of published data what the recipes read, with a report of every change.

Each file of the source is a part. A part appears when it is whole, with a note beside it of what
it was made from: a second run goes on with the parts that are missing or whose source, settings or
result have changed since.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pydantic import TypeAdapter

from deepeyes_plugins import __version__
from deepeyes_plugins.data.changes import Fault, Outcome, report_lines
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.files import (
    ROWS_AT_A_TIME,
    Row,
    json_rows,
    open_parquet,
    parquet_rows,
)
from deepeyes_plugins.data.findings import DataError, Problem
from deepeyes_plugins.data.formatter import check_opening, format_sharegpt
from deepeyes_plugins.data.media import MediaError, MediaPlaces, MediaRoot, read_media
from deepeyes_plugins.data.output import one_at_a_time, refuse_inputs, whole_file, write_text
from deepeyes_plugins.data.rl_checks import RowRules, rl_findings
from deepeyes_plugins.data.rl_repair import common_schema, repair_rl_row
from deepeyes_plugins.data.sft_checks import image_findings
from deepeyes_plugins.data.sft_repair import repair_sft_row
from deepeyes_plugins.data.writers import DATASET_INFO, register_dataset, row_writer

REPORT_NAME = "report.ndjson"
"""Holds every change and every row that was left out; JSON lines that nobody takes for data."""

_WORK = ".prepare"
_LAYOUT = 1
_NAMED_FAULTS = 10
_ANYWHERE = MediaRoot(None)
_NO_ROWS_IN = {DATASET_INFO, "dataset_infos.json"}

Progress = Callable[[str, int, int | None], None]
"""Told a file, how many of its rows are done, and of how many if that is known."""


def no_progress(file: str, done: int, total: int | None) -> None:
    """Tell nobody."""


@dataclass(slots=True)
class Summary:
    """What became of rows.

    Attributes:
        rows: Read.
        written: Of them.
        bad: That could not be repaired.
        changes: How often which kind of change was made, ``key: reason``.
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
        """Sum up."""
        self.rows += other.rows
        self.written += other.written
        self.bad += other.bad
        for change, count in other.changes.items():
            self.count(change, count)
        self.faults = (self.faults + other.faults)[:_NAMED_FAULTS]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run of ``prepare`` left behind.

    Attributes:
        files: To train on.
        report: Every change, as JSON lines.
        summary: Of all parts, also those that were finished before.
        parts: How many there are.
        found: How many of them were finished before.
    """

    files: tuple[Path, ...]
    report: Path
    summary: Summary
    parts: int
    found: int


@dataclass(slots=True)
class _Part:
    """A note of a finished part.

    Attributes:
        summary: What became of its rows.
        state: Size and time of its file, which tell whether it is still the one that was made.
        first_image: Start and length, in bytes, of the first line with images.
    """

    summary: Summary
    state: tuple[int, int] = (0, 0)
    first_image: tuple[int, int] | None = None


_PART = TypeAdapter(_Part)


class _UnreadableError(DataError):
    """A source cannot be read to its end; others may."""


def prepare_sft(
    sources: Sequence[Path],
    output: Path,
    *,
    name: str = "deepeyes_v2_sft",
    media: Sequence[Path] = (),
    columns: Sequence[str] = (),
    prefill: str = "<think>",
    decode: bool = True,
    keep_bad: bool = False,
    progress: Progress = no_progress,
) -> Prepared:
    """Make a data set for supervised fine-tuning.

    Args:
        sources: JSON files (an array or lines), and folders of such; zip files of images.
        output: Folder for ``<name>.jsonl``, ``dataset_info.json`` and the report.
        name: Of the data set.
        media: Folders and zip files to look for images in; by default where the sources are.
        columns: To keep beside messages and images, as text.
        prefill: What assistant turns have to begin with; empty for anything.
        decode: Whether images are opened and decoded, as the training's own check does.
        keep_bad: Whether rows that cannot be repaired are written nevertheless.
        progress: Told how it goes on.

    Raises:
        DataError: Nothing is to be read, a source cannot be read to its end, or the output cannot
            be written.
    """
    files = find_files(sources, (".json", ".jsonl"), "JSON")
    archives = [path for path in sources if path.suffix == ".zip"]
    around = [path for path in sources if path.is_dir()] + [file.parent for file in files]
    places = open_places(media or [*dict.fromkeys(around), *archives])
    refuse_inputs([output], [path for path in [*sources, *media] if path.is_dir()])
    target, info, report = (
        output / f"{name}.jsonl",
        output / DATASET_INFO,
        output / f"{name}.{REPORT_NAME}",
    )
    refuse_inputs([target, info, report], [*files, *archives])

    def repair(value: Mapping[str, Any]) -> Outcome:
        outcome = repair_sft_row(value, locate=places.locate, columns=columns, prefill=prefill)
        if not outcome.faults and outcome.row is not None:
            outcome.faults += _sft_faults(outcome.row, prefill, decode)
        return outcome

    settings = [list(columns), prefill, decode, keep_bad, str(places), _states(places)]
    with _working_in(output) as work:
        made: list[tuple[Path, Path, _Part]] = []
        found, unreadable = 0, []
        joined = work / f"{name}.json"
        marks = [_mark(file, settings) for file in files]
        known = _known(joined, _hash(marks), target)
        if known is not None and report.exists():
            summary, found = known.summary, len(files)
        else:
            for number, (file, mark) in enumerate(zip(files, marks, strict=True)):
                lines, note = work / f"{number}.jsonl", work / f"{number}.json"
                part = _known(note, mark, lines)
                found += part is not None
                if part is None:
                    try:
                        part = _make(file, lines, json_rows(file), repair, keep_bad, progress)
                    except _UnreadableError as error:
                        unreadable.append(str(error))
                        continue
                    _remember(note, mark, part, lines)
                made.append((lines, lines.with_suffix(".changes"), part))
            if unreadable:
                raise DataError("\n".join(unreadable))
            summary = _summed(part for _, _, part in made)
            _require_rows(summary)
            moved = _join(target, [(lines, part) for lines, _, part in made])
            summary.count("images: the first row with images comes first", int(moved))
            _append(report, [changes for _, changes, _ in made])
            _remember(joined, _hash(marks), _Part(summary), target)
        for left_over in [*work.glob("*.jsonl"), *work.glob("*.changes")]:
            left_over.unlink()
        register_dataset(info, name, target.name)
    return Prepared((target,), report, summary, len(files), found)


def prepare_rl(
    sources: Sequence[Path],
    output: Path,
    *,
    rules: RowRules | None = None,
    media: Sequence[Path] = (),
    source: str = "",
    keep_bad: bool = False,
    progress: Progress = no_progress,
) -> Prepared:
    """Make files for reinforcement learning: one for each, all of one schema.

    Args:
        sources: Parquet files, and folders of such; zip files of images.
        output: Folder for files of the same names and the report.
        rules: What rows are checked against, as in training.
        media: Folders and zip files to look for images in that rows name by a path; by default
            where the sources are.
        source: ``data_source`` of rows without one.
        keep_bad: Whether rows that cannot be repaired are written nevertheless, where they fit.
        progress: Told how it goes on.

    Raises:
        DataError: Nothing is to be read, a source cannot be read to its end, or the output cannot
            be written.
    """
    rules = rules or RowRules()
    files = find_files(sources, (".parquet",), "parquet")
    archives = [path for path in sources if path.suffix == ".zip"]
    around = [path for path in sources if path.is_dir()] + [file.parent for file in files]
    places = open_places(media or [*dict.fromkeys(around), *archives])
    refuse_inputs([output], [path for path in [*sources, *media] if path.is_dir()])
    targets = [output / file.name for file in files]
    report = output / REPORT_NAME
    refuse_inputs([*targets, report], [*files, *archives])
    if twice := [name for name, count in Counter(file.name for file in files).items() if count > 1]:
        raise DataError(f"several sources are called {twice[0]}; prepare them one after the other")
    schema = common_schema(map(parquet_schema, files))

    def repair(value: Mapping[str, Any]) -> Outcome:
        outcome = repair_rl_row(
            value,
            schema=schema,
            environment=rules.environment,
            source=source,
            read_image=lambda name: read_media(places.locate(name)),
        )
        if not outcome.faults and outcome.row is not None:
            found = rl_findings(outcome.row, rules=rules)
            outcome.faults += (Fault(f.key, f.reason) for f in found if f.level == "error")
        return outcome

    settings = [asdict(rules), source, keep_bad, str(places), _states(places), str(schema)]
    with _working_in(output) as work:
        parts: list[_Part] = []
        found, unreadable = 0, []
        for file, target in zip(files, targets, strict=True):
            mark, note = _mark(file, settings), work / f"{file.stem}.json"
            changes = work / f"{file.stem}.changes"
            part = _known(note, mark, target)
            found += part is not None
            if part is None:
                rows = parquet_rows(file, ("prompt",))
                try:
                    part = _make(
                        file, target, rows, repair, keep_bad, progress, schema, changes=changes
                    )
                except _UnreadableError as error:
                    unreadable.append(str(error))
                    continue
                _remember(note, mark, part, target)
            parts.append(part)
        if unreadable:
            raise DataError("\n".join(unreadable))
        summary = _summed(parts)
        _require_rows(summary)
        _append(report, [work / f"{file.stem}.changes" for file in files])
    return Prepared(tuple(targets), report, summary, len(files), found)


def find_files(sources: Iterable[Path], suffixes: Sequence[str], kind: str) -> list[Path]:
    """Return the data files among files and in folders, in a fixed order.

    Raises:
        DataError: There is none, or a source is of another kind.
    """
    files: list[Path] = []
    for path in sources:
        if path.is_dir():
            files += sorted(
                file
                for file in path.rglob("*")
                if file.suffix in suffixes
                and file.name not in _NO_ROWS_IN
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        elif path.suffix in suffixes:
            if not path.is_file():
                raise DataError(f"{path}: there is no such file")
            files.append(path)
        elif path.suffix != ".zip":
            raise DataError(f"{path}: neither a folder nor a {kind} file")
    if not files:
        raise DataError(f"there is no {kind} file in {', '.join(map(str, sources))}")
    return list(dict.fromkeys(files))


def open_places(paths: Iterable[Path]) -> MediaPlaces:
    """Open where images are.

    Raises:
        DataError: A folder is missing, or a zip file cannot be read.
    """
    try:
        return MediaPlaces.open(paths)
    except MediaError as error:
        raise DataError(str(error)) from error


def parquet_schema(file: Path) -> pa.Schema:
    """Read the columns of a parquet file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open_parquet(file) as opened:
            return opened.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read as parquet, perhaps cut short: {error}") from error


def _sft_faults(row: Mapping[str, Any], prefill: str, decode: bool) -> Iterator[Fault]:
    try:
        conversation = format_sharegpt(row)
        check_opening(conversation, prefill)
    except RowError as error:
        yield Fault("messages", str(error))
        return
    if decode:
        for finding in image_findings(conversation, _ANYWHERE):
            yield Fault(finding.key, finding.reason)


def _make(
    file: Path,
    target: Path,
    rows: Iterator[Row],
    repair: Callable[[Mapping[str, Any]], Outcome],
    keep_bad: bool,
    progress: Progress,
    schema: pa.Schema | None = None,
    changes: Path | None = None,
) -> _Part:
    """Repair the rows of a file, several at a time: decoding images holds no lock."""
    summary = Summary()
    total = _row_count(file)

    def outcome(row: Row) -> Outcome:
        if row.finding is not None:
            raise _UnreadableError(str(Problem(file, row.number, "", row.finding.reason, "error")))
        if not isinstance(row.value, Mapping):
            kind = type(row.value).__name__
            return Outcome(None, faults=[Fault("", f"the row is a {kind}, not an object")])
        result = repair(row.value)
        if schema is not None and result.row is not None and result.faults:
            try:
                pa.RecordBatch.from_pylist([result.row], schema)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                result.row = None
        return result

    with ExitStack() as stack:
        log = stack.enter_context(whole_file(changes or target.with_suffix(".changes")))
        lines = stack.enter_context(log.open("w", encoding="utf-8"))
        writer = stack.enter_context(row_writer(target, schema))
        pool = stack.enter_context(ThreadPoolExecutor(min(8, os.cpu_count() or 1)))
        while chunk := list(islice(rows, ROWS_AT_A_TIME)):
            for row, result in zip(chunk, pool.map(outcome, chunk), strict=True):
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
                lines.write(report_lines(str(file), row.number or 0, result, kept=kept))
            progress(file.name, summary.rows, total)
    return _Part(summary, first_image=writer.first_image)


def _row_count(file: Path) -> int | None:
    if file.suffix != ".parquet":
        return None
    with open_parquet(file) as opened:
        return int(opened.metadata.num_rows)


@contextmanager
def _working_in(output: Path) -> Iterator[Path]:
    work = output / _WORK
    with one_at_a_time(work / "lock"):
        yield work


def _join(target: Path, parts: Sequence[tuple[Path, _Part]]) -> bool:
    """Write all lines to one file, the first with images at its top.

    Hugging Face datasets settles on the type of ``images`` by the first 10 MiB, and published data
    have long stretches without any.

    Returns:
        Whether that row was moved.
    """
    with whole_file(target) as partial, partial.open("wb") as joined:
        first = next((at for at, (_, part) in enumerate(parts) if part.first_image), None)
        for number, (lines, part) in enumerate(parts):
            if number == first and part.first_image:
                with lines.open("rb") as source:
                    source.seek(part.first_image[0])
                    joined.write(source.read(part.first_image[1]))
        for number, (lines, part) in enumerate(parts):
            with lines.open("rb") as source:
                if number == first and part.first_image:
                    start, length = part.first_image
                    _copy(source, joined, start)
                    source.seek(start + length)
                shutil.copyfileobj(source, joined, 1 << 20)
    if first is None or not (image := parts[first][1].first_image):
        return False
    return image[0] > 0 or any(part.summary.written for _, part in parts[:first])


def _copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
    while length:
        piece = source.read(min(length, 1 << 20))
        target.write(piece)
        length -= len(piece)


def _append(report: Path, pieces: Iterable[Path]) -> None:
    with whole_file(report) as partial, partial.open("wb") as joined:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, joined, 1 << 20)


def _summed(parts: Iterable[_Part]) -> Summary:
    summary = Summary()
    for part in parts:
        summary.add(part.summary)
    return summary


def _require_rows(summary: Summary) -> None:
    if not summary.written:
        raise DataError(
            "\n".join([f"none of {summary.rows} rows can be used; the first:", *summary.faults])
        )


def _mark(file: Path, settings: Sequence[Any]) -> str:
    """Name all that a part depends on; image files in folders are not in it."""
    return _hash([str(file.absolute()), _state(file), settings, _LAYOUT, __version__])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _states(places: MediaPlaces) -> list[tuple[int, int]]:
    return [_state(place.archive) for place in places.places if place.archive]


def _known(note: Path, mark: str, target: Path) -> _Part | None:
    """What a note says about a part, if that part is finished and as it was."""
    try:
        stored = json.loads(note.read_bytes())
        part = _PART.validate_python(stored["part"])
        return part if stored["mark"] == mark and part.state == _state(target) else None
    except (OSError, ValueError, KeyError):
        return None


def _remember(note: Path, mark: str, part: _Part, target: Path) -> None:
    part.state = _state(target)
    write_text(note, json.dumps({"mark": mark, "part": _PART.dump_python(part, mode="json")}))
