"""Reader of VLMEvalKit's tables and score files: xlsx, tsv, csv and JSON, but no pickles."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from deepeyes_plugins.files import read_json
from deepeyes_plugins.protocol.content import encodable
from eval_plugins.cells import decoded

TABLE_SUFFIXES = (".xlsx", ".tsv", ".csv", ".json")
"""Table formats in order of preference. Pickles are excluded: unpickling can run code."""

FAILED = "Failed to obtain answer"
"""VLMEvalKit's marker of a failed prediction or a failed judge request."""

Metrics = dict[str, float]
"""Scores by name, such as ``split=none|Overall``."""


class UnreadableTable(ValueError):
    """A file is not a table; the message names it."""


def find_table(folder: Path, stem: str) -> Path | None:
    """Return the newest table of that name in any format."""
    paths = [folder / f"{stem}{suffix}" for suffix in TABLE_SUFFIXES]
    found = [path for path in paths if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime) if found else None


def read_table(path: Path) -> pd.DataFrame:
    """Read a table; every cell is text, and an empty cell is the empty string.

    Raises:
        UnreadableTable: The file is not a table.
        OSError: The file cannot be read.
    """
    try:
        if path.suffix == ".xlsx":
            return pd.read_excel(path, dtype=str, na_filter=False).map(decoded)
        if path.suffix in (".tsv", ".csv"):
            separator = "\t" if path.suffix == ".tsv" else ","
            return pd.read_csv(path, sep=separator, dtype=str, na_filter=False).map(decoded)
        if path.suffix == ".json":
            return _from_json(read_json(path.read_text(encoding="utf-8")))
    except OSError:
        raise
    except Exception as error:  # Every reader raises different types.
        raise UnreadableTable(f"{path} cannot be read as a table: {error}") from error
    raise UnreadableTable(f"{path}: not one of {', '.join(TABLE_SUFFIXES)}")


def _is_table(data: Any) -> bool:
    return _is_split(data) or _has_rows(data) or _has_columns(data)


def _from_json(data: Any) -> pd.DataFrame:
    if not _is_table(data):
        raise ValueError("neither rows nor columns")
    frame = (
        pd.DataFrame(data["data"], columns=data["columns"])
        if _is_split(data)
        else pd.DataFrame(data)
    )
    return frame.map(as_text)


def _is_split(data: Any) -> bool:
    return isinstance(data, dict) and {"columns", "data"} <= data.keys()


def _has_rows(data: Any) -> bool:
    return isinstance(data, list) and all(isinstance(row, dict) for row in data)


def _has_columns(data: Any) -> bool:
    return isinstance(data, dict) and all(isinstance(column, list) for column in data.values())


def as_text(value: Any) -> str:
    """Convert a cell to valid UTF-8: empty for ``None`` and NaN, integers without a point."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return encodable(str(value))


def as_number(value: Any) -> float | None:
    """Convert a cell to a finite number; percent signs and booleans are accepted."""
    if isinstance(value, bool):
        return float(value)
    text = str(value).strip().lower()
    if text in ("true", "false"):
        return float(text == "true")
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_blank(cell: str) -> bool:
    return cell.strip().lower().removesuffix("%") in ("", "nan")


def read_metrics(path: Path) -> Metrics:
    """Read a file of scores.

    The names follow VLMEvalKit's ``status.json``: ``column``, or ``dimension=value|column`` if a
    row has non-numeric columns; levels of JSON are joined by ``|``. Unlike there, a column with
    only some numeric cells also counts as a dimension if another column is all numeric: HRBench's
    ``cycle`` is 0 to 3 and ``Average``.

    Raises:
        UnreadableTable: The file has no scores in a known layout, or one row per sample.
        OSError: The file cannot be read.
    """
    if path.suffix == ".json":
        try:
            data = read_json(path.read_text(encoding="utf-8"))
            if not _is_table(data):
                return dict(_flat(data))
        except ValueError as error:
            raise UnreadableTable(f"{path} is not JSON: {error}") from error
        except RecursionError as error:
            raise UnreadableTable(f"{path} is nested too deeply") from error
        table = _from_json(data)
    else:
        table = read_table(path)
    if "index" in table:
        raise UnreadableTable(f"{path} has one row per sample and no scores")
    numbers = {
        column: [as_number(cell) is not None for cell in table[column] if not _is_blank(cell)]
        for column in table
    }
    numeric = [column for column, known in numbers.items() if known and all(known)] or [
        column for column, known in numbers.items() if any(known)
    ]
    found: Metrics = {}
    for row in table.to_dict("records"):
        dimensions = "|".join(
            f"{column}={row[column].strip()}"
            for column in table
            if column not in numeric and not _is_blank(row[column])
        )
        for column in numeric:
            if (number := as_number(row[column])) is not None:
                found.setdefault(f"{dimensions}|{column}" if dimensions else str(column), number)
    return found


def _flat(data: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _flat(value, f"{prefix}|{key}" if prefix else str(key))
    elif isinstance(data, list):
        for position, value in enumerate(data):
            yield from _flat(value, f"{prefix}|{position}" if prefix else str(position))
    elif (number := as_number(data)) is not None:
        yield prefix, number


# The main score of a benchmark; the first pattern that matches exactly one name.
_HEADLINES = tuple(
    re.compile(pattern)
    for pattern in (
        r"Final Score",  # OCRBench
        r"Setting=Average\|Overall",  # DynaMath
        r"cycle=Average\|type=all\|accuracy",  # HRBench
        r"Score \(Strict\)(\|0)?|.*\|Score \(Strict\)",  # WeMath
        r"[^|]*=Overall\|acc",  # MathVista, MathVision
        r"0=is_correct\|1",  # SimpleVQA
        r"Overall",
        r"split=none\|Overall",
        r".*\|Overall",
    )
)


def headline(metrics: Mapping[str, float]) -> str | None:
    """Return the name of a benchmark's main score, or ``None`` if it is ambiguous."""
    for pattern in _HEADLINES:
        names = [name for name in metrics if pattern.fullmatch(name)]
        if len(names) == 1:
            return names[0]
    return None
