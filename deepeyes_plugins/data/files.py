"""Streaming readers of data files: JSON arrays, JSON lines, and parquet by row group.

Memory is bounded by a few rows, whatever the size of the file. Rows are numbered from 1.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from deepeyes_plugins.data.column_types import ColumnTypes
from deepeyes_plugins.data.dataset_info import RowForm, form_of
from deepeyes_plugins.data.findings import DataError, Finding
from deepeyes_plugins.files import read_json

ROWS_AT_A_TIME = 16
"""Rows that are read and checked as a batch."""

_BYTES_AT_A_TIME = 4 << 20
_MOST_RUNS = 32
_CHARACTERS_AT_A_TIME = 1 << 20
_SHOWN_CHARACTERS = 30
_LONGEST_WORD = len("-Infinity") + 1
"""Longest literal of JSON as Python reads it; errors in a number or escape are at its end."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file.

    Attributes:
        number: Row number from 1; ``None`` for a finding about the whole file.
        value: The row.
        offset: Byte offset of its line; ``None`` within a JSON array.
        finding: Why the file cannot be read further, instead of a value.
    """

    number: int | None
    value: Any = None
    offset: int | None = None
    finding: Finding | None = None


def data_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of an RL (parquet) or SFT (JSON) file.

    SFT rows are converted to the built-in formatter's form if a ``dataset_info.json`` in the
    folder describes them.

    Raises:
        DataError: The entry of ``dataset_info.json`` is not supported.
    """
    if path.suffix == ".parquet":
        yield from parquet_rows(path, ("prompt",))
        return
    form = form_of(path)
    for row in json_rows(path):
        yield replace(row, value=form.read(row.value)) if isinstance(row.value, dict) else row


def conversation_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of an SFT file, parquet or JSON, unchanged."""
    return parquet_rows(path, ()) if path.suffix == ".parquet" else json_rows(path)


def json_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSON array or of JSON lines."""
    number: int | None = None
    try:
        # Windows programs write a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.read(1)
            while first.isspace():
                first = file.read(1)
            # A pipe cannot seek to its start.
            lines = chain([first + file.readline()], file) if first != "[" else ()
            for row in _line_rows(lines) if lines else _array_rows(file):
                number = row.number
                yield row
    except OSError as error:
        yield Row(None, finding=Finding(f"cannot be read: {error.strerror or error}"))
    except UnicodeDecodeError as error:
        where = f"after row {number}" if number else "near the start"
        wrong = error.object[error.start]
        yield Row(None, finding=Finding(f"is not UTF-8: byte {wrong:#04x} {where}"))


def cache_rows(path: Path) -> Iterator[Row]:
    """Yield the entries of a published image-search cache, which is loaded into memory."""
    # Imported here, so that checks of training data do not import search.
    from deepeyes_plugins.search.image_cache import ImageCacheError
    from deepeyes_plugins.search.image_conversion import read_entries

    try:
        entries = read_entries(path)
    except ImageCacheError as error:
        yield Row(None, finding=Finding(str(error).removeprefix(f"{path}: ")))
        return
    for number, (name, entry) in enumerate(entries.items(), 1):
        yield Row(number, {"name": name, "titles": entry.titles, "images": entry.images})


def _line_rows(lines: Iterable[str]) -> Iterator[Row]:
    number = offset = 0
    for line in lines:
        if line.strip():
            number += 1
            try:
                value = read_json(line)
            except (ValueError, RecursionError) as error:
                yield Row(number, finding=Finding(_not_json(error, line)))
            else:
                yield Row(number, value, offset)
        offset += len(line) if line.isascii() else len(line.encode())


def _array_rows(file: TextIO) -> Iterator[Row]:
    """Decode the elements of an array one by one, after its ``[``."""
    decoder = json.JSONDecoder()
    text, number = "", 0
    while True:
        # An incomplete row looks like an error: read on, in growing blocks.
        more = file.read(max(_CHARACTERS_AT_A_TIME, len(text)))
        text += more
        position = 0
        while True:
            start = _skip_space(text, position)
            if number and text[start : start + 1] == ",":
                start = _skip_space(text, start + 1)
            elif text[start : start + 1] == "]":
                return
            elif number and start < len(text):
                reason = f"after row {number} a comma or ] is missing"
                yield Row(None, finding=Finding(reason))
                return
            try:
                value, position = decoder.raw_decode(text, start)
            except (ValueError, RecursionError) as error:
                if more and _ends_too_early(error, text):
                    break
                yield Row(number + 1, finding=Finding(_not_json(error, text)))
                return
            number += 1
            yield Row(number, value)
        text = text[position:]


def _not_json(error: Exception, text: str) -> str:
    cut = ", perhaps truncated" if _ends_too_early(error, text) else ""
    if isinstance(error, RecursionError):
        return "not valid JSON: nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error}"
    near = text[max(0, error.pos - _SHOWN_CHARACTERS) : error.pos + _SHOWN_CHARACTERS]
    return f"not valid JSON{cut}: {error.msg} in {near!r}"


def _ends_too_early(error: Exception, text: str) -> bool:
    """Return whether the error is at the end of the text, where more input may resolve it."""
    return isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated string") or error.pos > len(text) - _LONGEST_WORD
    )


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1].isspace():
        position += 1
    return position


def training_rows(path: Path, form: RowForm | None = None) -> Iterator[Row]:
    """Yield SFT rows, with findings where Hugging Face datasets cannot read them.

    It accepts no byte order mark before a JSON array, and one type per column.

    Args:
        path: The file.
        form: Form of the rows, with required columns.
    """
    types: ColumnTypes | None = None
    marked = _is_marked_array(path)
    seen: dict[str, None] = {}
    for row in conversation_rows(path):
        yield row
        if isinstance(row.value, dict):
            seen |= dict.fromkeys(row.value)
        if marked:
            marked = False
            reason = (
                "the file starts with a byte order mark, and Hugging Face datasets would read it "
                "as JSON lines: save it without"
            )
            yield Row(row.number, finding=Finding(reason))
        if isinstance(row.value, dict) and row.number is not None and path.suffix != ".parquet":
            types = types or ColumnTypes(lines=row.offset is not None)
            for finding in types.findings(row.value, row.number, row.offset or 0):
                yield Row(row.number, finding=finding)
    if seen and form is not None and (missing := form.missing(seen)):
        yield Row(None, finding=Finding(missing, "system"))


def _is_marked_array(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(1 << 10)
    except OSError:
        return False
    return head.startswith(BOM_UTF8) and head[len(BOM_UTF8) :].lstrip().startswith(b"[")


def parquet_rows(
    path: Path,
    columns: Iterable[str],
    row_groups: range | None = None,
    first_row: int = 1,
    keep: Callable[[pa.RecordBatch], None] | None = None,
) -> Iterator[Row]:
    """Yield the rows of a parquet file.

    Args:
        path: The file.
        columns: Required columns.
        row_groups: Row groups to read; all by default.
        first_row: Number of their first row.
        keep: Called with every batch of rows as it was read.
    """
    number = first_row - 1
    try:
        with open_parquet(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            for name in missing:
                there = ", ".join(file.schema_arrow.names) or "none"
                reason = f"the column {name!r} is missing; the file's columns: {there}"
                yield Row(None, finding=Finding(reason, name))
            if missing:
                return
            for batch in row_batches(file, row_groups):
                if keep is not None:
                    keep(batch)
                for value in batch.to_pylist():
                    number += 1
                    yield Row(number, value)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f"after row {number}" if number else ""
        yield Row(None, finding=Finding(unreadable(error, where)))


def unreadable(error: Exception, where: str = "", form: str = "parquet") -> str:
    """Describe why a file cannot be read.

    Args:
        error: The error of the reader.
        where: How far it could be read.
        form: Expected format.
    """
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, PermissionError):
        return f"cannot be read: {error.strerror}"
    return f"cannot be read as {' '.join(filter(None, (form, where)))}, perhaps truncated: {error}"


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file for streaming."""
    return pq.ParquetFile(path, buffer_size=_BYTES_AT_A_TIME, pre_buffer=False)


def parquet_schema(path: Path) -> pa.Schema:
    """Read the schema of a parquet file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open_parquet(path) as file:
            return file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: {unreadable(error)}") from error


def row_count(path: Path) -> int | None:
    """Return the row count in a parquet file's metadata; ``None`` if it cannot be read."""
    try:
        with open_parquet(path) as file:
            return int(file.metadata.num_rows)
    except (pa.ArrowException, OSError):
        return None


def runs_of_row_groups(path: Path) -> list[tuple[range, int]]:
    """Split a file into runs of row groups of about equal size; one if it cannot be read.

    Returns:
        Row groups and the number of their first row, for each run.
    """
    try:
        with open_parquet(path) as file:
            groups = [file.metadata.row_group(at) for at in range(file.num_row_groups)]
    except (pa.ArrowException, OSError):
        groups = []
    while groups and not groups[-1].num_rows:
        groups.pop()
    share = sum(group.total_byte_size for group in groups) / _MOST_RUNS
    runs: list[tuple[range, int]] = []
    start, first_row, size, rows = 0, 1, 0, 0
    for stop, group in enumerate(groups, 1):
        size, rows = size + group.total_byte_size, rows + group.num_rows
        if stop == len(groups) or (rows and size >= share):
            runs.append((range(start, stop), first_row))
            start, first_row, size, rows = stop, first_row + rows, 0, 0
    return runs or [(range(0), 1)]


def row_batches(
    file: pq.ParquetFile, row_groups: range | None, columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield batches of a few rows of some row groups, with all columns or some.

    Arrow's 32-bit offsets cannot hold more than 2 GiB of nested binary, and threads or read-ahead
    would load whole row groups. This holds a page or two in memory, whose size the writer of the
    file chose (pyarrow: at most 1,024 rows).
    """
    groups = range(file.num_row_groups) if row_groups is None else row_groups
    yield from file.iter_batches(
        batch_size=ROWS_AT_A_TIME, row_groups=list(groups), columns=columns, use_threads=False
    )
