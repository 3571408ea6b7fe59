"""Checkpoints of a scan, from which an interrupted check resumes.

A checkpoint covers up to 1,000 rows: counts and problems in JSON, hashes of questions and images in
NumPy's format. It is written atomically.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from deepeyes_plugins.data.check.problem_counts import ProblemCounts
from deepeyes_plugins.data.check.row import TOO_LONG, RowCheck
from deepeyes_plugins.data.check.statistics import Statistics
from deepeyes_plugins.data.content_hash import image_hash, pair_hash, question_hash
from deepeyes_plugins.data.findings import DataError, Finding
from deepeyes_plugins.files import owner_only, whole_file

CHECKPOINT_ROWS = 1000
"""Rows per checkpoint: the most that each process repeats after an interruption."""

Hashes = npt.NDArray[np.uint64]


@dataclass(slots=True)
class Checkpoint:
    """Counts over some rows.

    Attributes:
        rows: Rows that could be read.
        bad_rows: Rows with an error, including those that could not be read.
        long_rows: Rows over the token limit of training.
        last_row: Number of the last row; 0 if there are none.
        problem_counts: Problems by kind.
        statistics: Statistics of readable rows.
    """

    rows: int = 0
    bad_rows: int = 0
    long_rows: int = 0
    last_row: int = 0
    problem_counts: ProblemCounts = field(default_factory=ProblemCounts)
    statistics: Statistics = field(default_factory=Statistics)

    def merge(self, other: Checkpoint) -> None:
        """Add the counts of a later checkpoint."""
        self.rows += other.rows
        self.bad_rows += other.bad_rows
        self.long_rows += other.long_rows
        self.last_row = max(self.last_row, other.last_row)
        self.problem_counts.merge(other.problem_counts)
        self.statistics.merge(other.statistics)


_CHECKPOINT = TypeAdapter(Checkpoint)


class CheckpointWriter:
    """Collects row checks in order and writes a checkpoint."""

    def __init__(self, folder: Path, number: int) -> None:
        """Start checkpoint ``number`` in the existing ``folder``."""
        self._folder, self._number = folder, number
        self.checkpoint = Checkpoint()
        self._problems: list[dict[str, Any]] = []
        self._rows: list[int] = []
        self._pairs: list[int] = []
        self._counts: list[int] = []
        self._images: list[int] = []

    def add(self, row: int | None, check: RowCheck, *, counts: bool) -> None:
        """Add the check of a row.

        Args:
            row: Row number; ``None`` for findings about the file.
            check: Its findings and facts.
            counts: Whether the row could be read.
        """
        checkpoint = self.checkpoint
        checkpoint.rows += counts
        errors = any(finding.level == "error" for finding in check.findings)
        checkpoint.bad_rows += row is not None and errors
        checkpoint.long_rows += any(finding.key == TOO_LONG for finding in check.findings)
        checkpoint.last_row = max(checkpoint.last_row, row or 0)
        for finding in check.findings:
            self.problem(row, finding)
        if check.facts is not None and row is not None:
            checkpoint.statistics.add(check.facts)
            images = [image_hash(info.image.data) for info in check.facts.images]
            self._rows.append(row)
            self._pairs.append(pair_hash(question_hash(check.facts.question), images))
            self._counts.append(len(images))
            self._images += images

    def problem(self, row: int | None, finding: Finding) -> None:
        """Add a problem."""
        self.checkpoint.problem_counts.add(row, finding)
        self._problems.append(
            {"row": row, "level": finding.level, "key": finding.key, "reason": finding.reason}
        )

    def write(self) -> None:
        """Write the checkpoint.

        Raises:
            DataError: It cannot be written.
        """
        path = self._folder / f"{self._number:09d}"
        with writing(self._folder):
            np.savez(
                path.with_suffix(".npz"),
                rows=np.array(self._rows, np.uint32),
                pairs=np.array(self._pairs, np.uint64),
                counts=np.array(self._counts, np.uint16),
                images=np.array(self._images, np.uint64),
            )
            with path.with_suffix(".problems").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(one) + "\n" for one in self._problems)
            with whole_file(path.with_suffix(".json")) as partial:
                partial.write_bytes(_CHECKPOINT.dump_json(self.checkpoint))
            for each in self._folder.glob(f"{path.name}.*"):
                owner_only(each)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failed write to ``folder`` into an error that says what to do.

    Raises:
        DataError: The folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}; --state chooses another place"
        ) from error


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a part in row order."""
    return sorted(folder.glob("*.json"))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the counts of a checkpoint."""
    return _CHECKPOINT.validate_json(path.read_bytes())


def problems_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the problems of a checkpoint: row, level, key and reason."""
    with path.with_suffix(".problems").open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def hashes_of(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the hashes of a checkpoint: ``rows``, ``pairs``, image ``counts``, ``images``."""
    with np.load(path.with_suffix(".npz")) as file:
        return {name: file[name] for name in file.files}
