"""Problem counts by kind, with a few examples each, in bounded memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from deepeyes_plugins.data.findings import Finding, Level

EXAMPLES = 5
"""Examples stored per kind."""
_MOST_KINDS = 500
_OTHER = "other problems"
_VARIABLE = (
    (re.compile(r"image \d+ \(.{0,400}?\):"), "image N:"),
    (re.compile(r"'(?:[^'\\]|\\.){1,400}'|\"[^\"]{1,400}\""), "…"),
    (
        re.compile(
            r"(?<!\w)/[^\s,;:]++|(?<![\w./-])[\w./-]+\.(?:png|jpe?g|webp|gif|bmp|zip)\b", re.I
        ),
        "…",
    ),
    (re.compile(r"\d[\d,.]*(?![\w-])"), "N"),
)


def kind_of(reason: str) -> str:
    """Return ``reason`` with names and numbers replaced by placeholders."""
    for pattern, stand_in in _VARIABLE:
        reason = pattern.sub(stand_in, reason)
    return reason


@dataclass(slots=True)
class Example:
    """An example of a problem; ``row`` is ``None`` if it concerns the file."""

    row: int | None
    reason: str


@dataclass(slots=True)
class ProblemKind:
    """Count and examples of one kind of problem.

    Attributes:
        key: The column; empty for the whole row.
        level: ``error`` or ``warning``.
        kind: The reason without names and numbers.
        count: Number of occurrences.
        examples: The first occurrences.
    """

    key: str
    level: Level
    kind: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(slots=True)
class ProblemCounts:
    """Counts of problems by kind, in order of first occurrence."""

    kinds: list[ProblemKind] = field(default_factory=list)

    def add(self, row: int | None, finding: Finding) -> None:
        """Count a finding about a row, or about the file."""
        entry = self._entry(finding.key, finding.level, kind_of(finding.reason))
        entry.count += 1
        if len(entry.examples) < EXAMPLES:
            entry.examples.append(Example(row, finding.reason[:1000]))

    def merge(self, other: ProblemCounts) -> None:
        """Add the counts of ``other``."""
        for theirs in other.kinds:
            ours = self._entry(theirs.key, theirs.level, theirs.kind)
            ours.count += theirs.count
            ours.examples += theirs.examples[: EXAMPLES - len(ours.examples)]

    def count(self, level: Level) -> int:
        """Return the number of problems of a level."""
        return sum(entry.count for entry in self.kinds if entry.level == level)

    def _entry(self, key: str, level: Level, kind: str) -> ProblemKind:
        if len(self.kinds) >= _MOST_KINDS:
            kind = kind if any(entry.kind == kind for entry in self.kinds) else _OTHER
        for entry in self.kinds:
            if (entry.key, entry.level, entry.kind) == (key, level, kind):
                return entry
        self.kinds.append(ProblemKind(key, level, kind))
        return self.kinds[-1]
