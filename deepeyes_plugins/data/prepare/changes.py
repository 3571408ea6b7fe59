"""What was changed about rows on their way, one by one for a file and summed up for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepeyes_plugins.data.findings import Finding
from deepeyes_plugins.protocol.content import encodable

_MOST_CHARACTERS = 500
"""Of a value that a report shows (ours)."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was changed about a row.

    Attributes:
        key: The column; half a character in its name is replaced.
        before: Its value, or the part of it that was changed.
        after: What it was changed to.
        reason: Why; the same words for the same kind of change.
    """

    key: str
    before: Any
    after: Any
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", encodable(self.key))


@dataclass(slots=True)
class Outcome:
    """What became of a row.

    Attributes:
        row: The row as it is to be written; ``None`` if it cannot be.
        changes: Made to it.
        faults: What keeps it from being used and cannot be repaired.
    """

    row: dict[str, Any] | None
    changes: list[Change] = field(default_factory=list)
    faults: list[Finding] = field(default_factory=list)


def report_lines(file: str, number: int | None, outcome: Outcome, *, kept: bool) -> str:
    """Put what became of a row into JSON lines, empty if nothing did.

    Args:
        file: The file that the row came from.
        number: Of the row, counted from 1; ``None`` if no row is concerned.
        outcome: What became of it.
        kept: Whether the row was written.
    """
    place = {"file": encodable(file), "row": number}
    records = [
        {
            **place,
            "action": "changed",
            "key": change.key,
            "before": _short(change.before),
            "after": _short(change.after),
            "reason": change.reason,
        }
        for change in outcome.changes
    ]
    action = "kept" if kept else "left out"
    records += [
        {
            **place,
            "action": action,
            "key": fault.key,
            "before": None,
            "after": None,
            "reason": fault.reason,
        }
        for fault in outcome.faults
    ]
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)


def _short(value: Any) -> Any:
    """Make a value fit for a report: no bytes, nothing long, nothing that JSON or UTF-8 lacks."""
    if isinstance(value, str):
        value = encodable(value)
        return value if len(value) <= _MOST_CHARACTERS else f"{value[:_MOST_CHARACTERS]}…"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, Mapping):
        value = {encodable(str(key)): _short(entry) for key, entry in value.items()}
    elif isinstance(value, list | tuple):
        value = [_short(entry) for entry in value]
    else:
        return _short(str(value))
    text = json.dumps(value, ensure_ascii=False)
    return value if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
