"""Duplicates within files, and leakage between training and validation, by 64-bit hashes.

Memory: 14 bytes per row and 8 per image (row number, hash of question and images, number of images,
hash of each image), twice that while sorting. A collision among a hundred million rows has a
probability of one in ten thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepeyes_plugins.data.check.checkpoints import hashes_of
from deepeyes_plugins.data.findings import Finding


@dataclass(frozen=True, slots=True)
class Hashes:
    """Hashes of the rows of several files, as columns.

    Attributes:
        files: The files.
        ends: End position of each file's rows.
        rows: Row numbers within the files.
        pairs: Hashes of question and images together.
        counts: Number of images of each row.
        images: Image hashes of all rows, concatenated.
    """

    files: Sequence[Path]
    ends: Sequence[int]
    rows: npt.NDArray[Any]
    pairs: npt.NDArray[Any]
    counts: npt.NDArray[Any]
    images: npt.NDArray[Any]

    @classmethod
    def read(cls, checkpoints: Iterable[tuple[Path, Sequence[Path]]]) -> Hashes:
        """Read the hashes of files, each given with its checkpoints."""
        files, ends = [], []
        columns: dict[str, list[npt.NDArray[Any]]] = {
            name: [np.zeros(0, kind)]
            for name, kind in (("rows", "u4"), ("pairs", "u8"), ("counts", "u2"), ("images", "u8"))
        }
        end = 0
        for file, paths in checkpoints:
            for path in paths:
                for name, values in hashes_of(path).items():
                    columns[name].append(values)
                end += len(columns["rows"][-1])
            files.append(file)
            ends.append(end)
        joined = {name: np.concatenate(columns.pop(name)) for name in list(columns)}
        return cls(files, ends, **joined)

    def place(self, at: int) -> tuple[int, int]:
        """Return file index and row number at a position."""
        file = int(np.searchsorted(self.ends, at, side="right"))
        return file, int(self.rows[at])

    def name(self, at: int, seen_from: int | None = None) -> str:
        """Describe the row at a position; the file is omitted if it is ``seen_from``."""
        file, row = self.place(at)
        return f"row {row}" if file == seen_from else f"row {row} of {self.files[file]}"


def duplicates(hashes: Hashes) -> Iterator[tuple[int, int, Finding]]:
    """Yield file, row and finding of each row that repeats the question and images of another."""
    order = np.argsort(hashes.pairs, kind="stable")
    ordered = hashes.pairs[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    starts = np.searchsorted(ordered, ordered[same], side="left")
    for at, first in sorted(zip(order[same].tolist(), order[starts].tolist(), strict=True)):
        file, row = hashes.place(at)
        where = hashes.name(first, file)
        yield file, row, Finding(f"duplicate: same question and images as {where}", "", "warning")


def leaks(train: Hashes, validation: Hashes) -> Iterator[tuple[int, int, Finding]]:
    """Yield file, row and finding of training rows that share data with validation."""
    order = np.argsort(validation.pairs, kind="stable")
    ordered = validation.pairs[order]
    shared = np.isin(train.pairs, ordered)
    owners = np.repeat(np.arange(len(train.rows)), train.counts)
    theirs = np.repeat(np.arange(len(validation.rows)), validation.counts)
    image_order = np.argsort(validation.images, kind="stable")
    image_ordered = validation.images[image_order]
    known = np.isin(train.images, image_ordered)
    common = np.unique(owners[known])
    starts = np.cumsum(train.counts, dtype=np.int64) - train.counts
    for at in np.union1d(np.flatnonzero(shared), common).tolist():
        file, row = train.place(at)
        if shared[at]:
            other = order[np.searchsorted(ordered, train.pairs[at])]
            reason = f"the validation data have question and images too, {validation.name(other)}"
            yield file, row, Finding(reason, "leakage")
            continue
        number = int(known[starts[at] :].argmax())
        image = train.images[starts[at] + number]
        other = theirs[image_order[np.searchsorted(image_ordered, image)]]
        reason = f"the validation data have image {number + 1} too, {validation.name(other)}"
        yield file, row, Finding(f"{reason}; the questions differ", "leakage", "warning")
