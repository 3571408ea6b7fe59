"""Results of checks: findings about rows, reports about files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deepeyes_plugins.protocol.content import encodable

Level = Literal["error", "warning"]


class DataError(ValueError):
    """A data file cannot be used; the message names rows and reasons."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or unusual about a row.

    Attributes:
        reason: What is wrong. Lone surrogates, which cannot be written to a file, are replaced.
        key: The column; empty if it concerns the whole row.
        level: An ``error`` makes the row unusable, a ``warning`` does not.
    """

    reason: str
    key: str = ""
    level: Level = "error"

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", encodable(self.reason))
        object.__setattr__(self, "key", encodable(self.key))

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" if self.key else self.reason


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding and where it is.

    Attributes:
        file: The file.
        row: Row number from 1; ``None`` for the whole file.
        key: The column; empty for the whole row or file.
        reason: What is wrong.
        level: ``error`` or ``warning``.
    """

    file: Path
    row: int | None
    key: str
    reason: str
    level: Level

    def __str__(self) -> str:
        row = "" if self.row is None else f", row {self.row}"
        key = f"{self.key}: " if self.key else ""
        return f"{self.file}{row}: {key}{self.reason}"


@dataclass(slots=True)
class Report:
    """Result of the check of a file.

    Attributes:
        file: The file.
        rows: Number of rows checked.
        problems: Problems in row order.
    """

    file: Path
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        """Problems that make a row or the file unusable."""
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """Problems that do not."""
        return [problem for problem in self.problems if problem.level == "warning"]

    @property
    def ok(self) -> bool:
        """Whether the file and all of its rows can be used."""
        return not self.errors

    @property
    def is_readable(self) -> bool:
        """Whether all errors concern rows, not the whole file."""
        return all(problem.row is not None for problem in self.errors)

    @property
    def bad_rows(self) -> int:
        """Number of unusable rows."""
        return len({problem.row for problem in self.errors} - {None})

    def describe(self, most: int = 10) -> str:
        """Summarize the errors and list at most ``most`` of them."""
        errors = self.errors
        if self.bad_rows:
            head = f"{self.bad_rows} of {self.rows} rows cannot be used (counted from 1)"
        else:
            head = "the file cannot be used"
        lines = [f"{self.file}: {head}", *map(str, errors[:most])]
        if len(errors) > most:
            lines.append(f"and {len(errors) - most} more problems")
        return "\n  ".join(lines)

    def raise_if_bad(self, most: int = 10) -> None:
        """Raise unless :attr:`ok`.

        Args:
            most: Maximum number of problems in the message.

        Raises:
            DataError: The file or some of its rows cannot be used.
        """
        if not self.ok:
            raise DataError(self.describe(most))
