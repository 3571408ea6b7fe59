"""Detection of JSON rows whose column types Hugging Face datasets cannot unify.

Trainers that read JSON with it need one type per column, including nested and unused columns. For
JSON lines, types are inferred per 10 MiB, and later blocks are cast to the types of the first; a
JSON array is read as a whole (datasets 4.0.0 with pyarrow and pandas). This check is stricter: it
does not convert between numbers and strings of digits or dates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from deepeyes_plugins.data.findings import Finding

CHUNK_BYTES = 10 << 20
"""Block of JSON lines for which types are inferred; it ends with a whole line."""

Kind = Literal["text", "whole", "number", "truth", "list", "object"]

_KINDS: Mapping[type, Kind] = {
    str: "text",
    int: "whole",
    float: "number",
    bool: "truth",
    list: "list",
    dict: "object",
}
_NAMES: Mapping[Kind, str] = {
    "text": "a string",
    "whole": "a number",
    "number": "a number with a fraction",
    "truth": "true or false",
    "list": "a list",
    "object": "an object",
}
_FAMILIES: Mapping[Kind, str] = {kind: kind for kind in _NAMES} | {"whole": "number"}
_SCALARS = ("whole", "number", "truth")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_REMEDY = "`deepeyes data prepare sft` writes a file that can be read"


class _Node:
    """Types seen at a path in the rows: a column, its list items, its object fields."""

    __slots__ = ("dates", "fields", "first", "is_wrong", "items", "name", "settled")

    dates: bool

    def __init__(self, name: str, settled: _Node | None, *, dates: bool) -> None:
        self.name = name
        self.settled = settled
        self.first: dict[Kind, int] = {}
        self.fields: dict[str, _Node] = {}
        self.items: _Node | None = None
        self.is_wrong = False
        # Whether every string so far is a date; False where that is irrelevant.
        self.dates = dates if settled is None else settled.dates and "text" in settled.first


class ColumnTypes:
    """Tracks column types row by row and reports where reading fails."""

    def __init__(self, *, lines: bool) -> None:
        """Start before the first row.

        Args:
            lines: Whether the file holds JSON lines, not an array.
        """
        self._lines = lines
        self._start = 0
        self._root = _Node("", None, dates=lines)

    def findings(self, row: Mapping[str, Any], number: int, offset: int = 0) -> list[Finding]:
        """Return conflicts of a row with earlier rows, once for each path.

        Args:
            row: The row.
            number: Row number from 1.
            offset: Byte offset of the line in JSON lines.
        """
        if self._lines and offset - self._start > CHUNK_BYTES:
            self._start = offset
            self._root = _Node("", self._root.settled or self._root, dates=True)
        found: list[Finding] = []
        self._fields(self._root, row, number, found)
        return found

    def _fields(
        self, node: _Node, values: Mapping[str, Any], row: int, found: list[Finding]
    ) -> None:
        fields = node.fields
        for name, value in values.items():
            child = fields.get(name)
            if child is None:
                child = self._child(node, name, row, found)
            self._see(child, value, row, found)

    def _see(self, node: _Node, value: Any, row: int, found: list[Finding]) -> None:
        if value is None:
            return
        kind = _KINDS[type(value)]
        if kind == "number" and not self._lines and math.isnan(value):
            return  # pandas reads it as a missing value.
        if kind == "text":
            if self._lines and not value.isascii() and not _is_whole(value):
                self._report(node, "a lone surrogate", row, found)
            if node.dates and not _is_date(value):
                self._no_date(node, row, found)
        elif kind in _SCALARS:
            kind = self._number(node, kind, value, row, found)
        if kind not in node.first:
            self._kind(node, kind, row, found)
        if kind == "list":
            items = node.items
            if items is None:
                settled = node.settled.items if node.settled else None
                items = node.items = _Node(f"{node.name}[]", settled, dates=self._lines)
            for item in value:
                self._see(items, item, row, found)
        elif kind == "object":
            self._fields(node, value, row, found)

    def _child(self, node: _Node, name: str, row: int, found: list[Finding]) -> _Node:
        settled = node.settled.fields.get(name) if node.settled else None
        full = f"{node.name}.{name}" if node.name else name
        child = node.fields[name] = _Node(full, settled, dates=self._lines)
        if node.settled is not None and settled is None:
            child.is_wrong = node.is_wrong
            if not child.is_wrong:
                self._late(child, row, found)
        return child

    def _number(self, node: _Node, kind: Kind, value: Any, row: int, found: list[Finding]) -> Kind:
        """Return the kind of a number for the reader."""
        if kind == "whole":
            if -(1 << 63) <= value < (1 << 63):
                return "whole"
            if self._lines:
                kind = "number"
            elif not -(1 << 63) <= value < (1 << 64):
                self._report(node, "a number of more than 64 bits", row, found)
        settled = node.settled
        if (
            kind == "number"
            and settled is not None
            and settled.first.keys() & _SCALARS == {"whole"}
            and not (math.isfinite(value) and value == int(value) and abs(value) < 1 << 63)
        ):
            self._uncastable(node, kind, "whole", row, found)
        return kind

    def _kind(self, node: _Node, kind: Kind, row: int, found: list[Finding]) -> None:
        """Record the first occurrence of a kind."""
        for other, first in node.first.items():
            if _FAMILIES[other] != _FAMILIES[kind]:
                here, there = _NAMES[kind], _NAMES[other]
                self._report(node, f"{here}, but {there} in row {first}", row, found)
        node.first[kind] = row
        settled = node.settled
        if settled is None:
            return
        if not settled.first:
            self._late(node, row, found)
        elif kind in _SCALARS and (
            settled.first.keys() <= set(_SCALARS) or ("text" in settled.first and not settled.dates)
        ):
            return
        elif not any(_FAMILIES[kind] == _FAMILIES[other] for other in settled.first):
            self._uncastable(node, kind, next(iter(settled.first)), row, found)

    def _no_date(self, node: _Node, row: int, found: list[Finding]) -> None:
        node.dates = False
        if node.settled is not None:
            self._report(
                node,
                "not a date, but all rows of the first 10 MiB, which define the column's type, "
                "have dates",
                row,
                found,
            )

    def _late(self, node: _Node, row: int, found: list[Finding]) -> None:
        self._report(
            node,
            "the first row with a value here, but Hugging Face datasets takes the columns of JSON "
            "lines and their types from the first 10 MiB, which have none: move the row to the top",
            row,
            found,
            advice=False,
        )

    def _uncastable(
        self, node: _Node, kind: Kind, settled: Kind, row: int, found: list[Finding]
    ) -> None:
        first = node.settled.first[settled] if node.settled else 0
        self._report(node, f"{_NAMES[kind]}, but {_NAMES[settled]} in row {first}", row, found)

    def _report(
        self, node: _Node, reason: str, row: int, found: list[Finding], *, advice: bool = True
    ) -> None:
        if node.is_wrong:
            return
        node.is_wrong = True
        column = re.split(r"\.|\[", node.name, maxsplit=1)[0]
        place = "" if node.name == column else f"{node.name}: "
        more = (
            " (training reads the file with Hugging Face datasets, which need one type per column, "
            f"used or not). Use one type, or {_REMEDY}"
            if advice
            else f", or {_REMEDY}"
        )
        found.append(Finding(f"{place}{reason}{more}", column))


def _is_whole(text: str) -> bool:
    """Return whether a string has no lone surrogate."""
    try:
        text.encode("utf-16-le")  # A third of the time of UTF-8.
    except UnicodeEncodeError:
        return False
    return True


def _is_date(text: str) -> bool:
    """Return whether pyarrow's JSON reader parses a string as a date."""
    if not _DATE.match(text):
        return False
    for zone in (None, "UTC"):
        try:
            pa.scalar(text).cast(pa.timestamp("s", zone))
        except pa.ArrowInvalid:
            continue
        return True
    return False
