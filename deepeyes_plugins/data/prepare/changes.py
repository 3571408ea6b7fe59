"""Changes to rows during preparation, and their report as JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepeyes_plugins.data.findings import Finding
from deepeyes_plugins.protocol.content import encodable

_MOST_CHARACTERS = 500
"""Maximum characters of a value in the report."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change to a row.

    Attributes:
        key: The column; lone surrogates in its name are replaced.
        before: Old value, or the changed part of it.
        after: New value.
        reason: Reason, identical for changes of the same kind.
    """

    key: str
    before: Any
    after: Any
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", encodable(self.key))


@dataclass(slots=True)
class Outcome:
    """Result of repairing a row.

    Attributes:
        row: The repaired row; ``None`` if it cannot be written.
        changes: Changes made.
        faults: Errors that cannot be repaired.
    """

    row: dict[str, Any] | None
    changes: list[Change] = field(default_factory=list)
    faults: list[Finding] = field(default_factory=list)


def report_lines(file: str, number: int | None, outcome: Outcome, *, kept: bool) -> str:
    """Return the report of a row as JSON lines; empty without changes and faults.

    Args:
        file: File of the row.
        number: Row number from 1; ``None`` if it concerns no row.
        outcome: Result of the repair.
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
    """Shorten a value and replace what JSON or UTF-8 cannot represent."""
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
