"""Problems of many rows, counted by kind: the memory of a few, however many rows are bad."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from deepeyes_plugins.data.findings import Finding, Level

EXAMPLES = 5
"""Problems that are kept of a kind."""
_MOST_KINDS = 500
_OTHER = "other problems"
_VARIABLE = (
    (re.compile(r"image \d+ \(.*?\):"), "image N:"),
    (re.compile(r"'(?:[^'\\]|\\.){1,400}'|\"[^\"]{1,400}\""), "…"),
    (re.compile(r"(?<!\w)/[^\s,;:]+|\b[\w./-]+\.(?:png|jpe?g|webp|gif|bmp|zip)\b", re.I), "…"),
    (re.compile(r"\d[\d,.]*(?![\w-])"), "N"),
)


def kind_of(reason: str) -> str:
    """Return what reasons of one kind have in common: names and numbers are left out."""
    for pattern, stand_in in _VARIABLE:
        reason = pattern.sub(stand_in, reason)
    return reason


@dataclass(slots=True)
class Example:
    """A problem of a kind; ``row`` is ``None`` if it concerns the file."""

    row: int | None
    reason: str


@dataclass(slots=True)
class KindOfProblem:
    """How often something is wrong.

    Attributes:
        key: The column; empty if whole rows are concerned.
        level: ``error`` or ``warning``.
        kind: What is wrong.
        count: How often.
        examples: The first ones.
    """

    key: str
    level: Level
    kind: str
    count: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """Counts of problems by kind, in the order in which kinds came up."""

    kinds: list[KindOfProblem] = field(default_factory=list)

    def add(self, row: int | None, finding: Finding) -> None:
        """Count a finding about a row, or about the file."""
        entry = self._entry(finding.key, finding.level, kind_of(finding.reason))
        entry.count += 1
        if len(entry.examples) < EXAMPLES:
            entry.examples.append(Example(row, finding.reason[:1000]))

    def merge(self, other: Tally) -> None:
        """Count all that another one has counted."""
        for theirs in other.kinds:
            ours = self._entry(theirs.key, theirs.level, theirs.kind)
            ours.count += theirs.count
            ours.examples += theirs.examples[: EXAMPLES - len(ours.examples)]

    def count(self, level: Level) -> int:
        """Return how many problems of a level there are."""
        return sum(entry.count for entry in self.kinds if entry.level == level)

    def _entry(self, key: str, level: Level, kind: str) -> KindOfProblem:
        if len(self.kinds) >= _MOST_KINDS:
            kind = kind if any(entry.kind == kind for entry in self.kinds) else _OTHER
        for entry in self.kinds:
            if (entry.key, entry.level, entry.kind) == (key, level, kind):
                return entry
        self.kinds.append(KindOfProblem(key, level, kind))
        return self.kinds[-1]
