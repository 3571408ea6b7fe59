"""What was seen of a file, kept piece by piece, so that an interrupted check goes on.

A piece is up to 1,000 rows: their counts and problems in JSON, hashes of their questions and images
in NumPy's format. It appears when it is whole.
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

from deepeyes_plugins.data.findings import DataError, Finding
from deepeyes_plugins.data.identity import image_hash, pair_hash, question_hash
from deepeyes_plugins.data.looks import TOO_LONG, Look
from deepeyes_plugins.data.statistics import Statistics
from deepeyes_plugins.data.tally import Tally
from deepeyes_plugins.files import whole_file

PIECE_ROWS = 1000
"""Rows of a piece: what an interruption may lose, for each process."""

Hashes = npt.NDArray[np.uint64]


@dataclass(slots=True)
class Piece:
    """Counts over some rows.

    Attributes:
        rows: Rows that could be read.
        bad_rows: Of these, or of what is no row, those with an error.
        long_rows: Rows with more tokens than training takes.
        last_row: Number of the last row; 0 if there are none.
        tally: Problems by kind.
        statistics: Of the rows that can be read as their kind.
    """

    rows: int = 0
    bad_rows: int = 0
    long_rows: int = 0
    last_row: int = 0
    tally: Tally = field(default_factory=Tally)
    statistics: Statistics = field(default_factory=Statistics)

    def merge(self, other: Piece) -> None:
        """Count the rows of another one, which come later."""
        self.rows += other.rows
        self.bad_rows += other.bad_rows
        self.long_rows += other.long_rows
        self.last_row = max(self.last_row, other.last_row)
        self.tally.merge(other.tally)
        self.statistics.merge(other.statistics)


_PIECE = TypeAdapter(Piece)


class PieceWriter:
    """Collects what is seen of rows, in order, and writes it."""

    def __init__(self, folder: Path, number: int) -> None:
        """Begin piece ``number`` in ``folder``, which is there."""
        self._folder, self._number = folder, number
        self.piece = Piece()
        self._problems: list[dict[str, Any]] = []
        self._rows: list[int] = []
        self._pairs: list[int] = []
        self._counts: list[int] = []
        self._images: list[int] = []

    def add(self, row: int | None, look: Look, *, counts: bool) -> None:
        """Add what was seen of a row.

        Args:
            row: Its number; ``None`` where the file is concerned.
            look: What was seen.
            counts: Whether it is a row, not only a place in the file.
        """
        piece = self.piece
        piece.rows += counts
        piece.bad_rows += row is not None and any(one.level == "error" for one in look.findings)
        piece.long_rows += any(one.key == TOO_LONG for one in look.findings)
        piece.last_row = max(piece.last_row, row or 0)
        for finding in look.findings:
            self.problem(row, finding)
        if look.facts is not None and row is not None:
            piece.statistics.add(look.facts)
            images = [image_hash(seen.image.data) for seen in look.facts.images]
            self._rows.append(row)
            self._pairs.append(pair_hash(question_hash(look.facts.question), images))
            self._counts.append(len(images))
            self._images += images

    def problem(self, row: int | None, finding: Finding) -> None:
        """Add a problem."""
        self.piece.tally.add(row, finding)
        self._problems.append(
            {"row": row, "level": finding.level, "key": finding.key, "reason": finding.reason}
        )

    def write(self) -> None:
        """Write the piece.

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
                partial.write_bytes(_PIECE.dump_json(self.piece))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Tell what to do where pieces cannot be written.

    Raises:
        DataError: They cannot.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}; --state chooses another place"
        ) from error


def pieces_in(folder: Path) -> list[Path]:
    """Return the pieces of a part that are whole, in the order of their rows."""
    return sorted(folder.glob("*.json"))


def read_piece(path: Path) -> Piece:
    """Read the counts of a piece."""
    return _PIECE.validate_json(path.read_bytes())


def problems_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the problems of a piece: row, level, key and reason."""
    with path.with_suffix(".problems").open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def hashes_of(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the hashes of a piece: ``rows``, ``pairs``, ``counts`` of images, ``images``."""
    with np.load(path.with_suffix(".npz")) as file:
        return {name: file[name] for name in file.files}
