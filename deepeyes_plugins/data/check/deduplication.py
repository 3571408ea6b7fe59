"""Find rows that occur twice, and those that training and validation share, by 64-bit hashes.

What is held is 14 bytes per row and 8 per image (number, hash of question and images, number of
images, hash of each image), and as much again for sorting. Hashes of a hundred million rows agree
by chance in one case of ten thousand.
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
    """Of the rows of several files.

    Attributes:
        files: Names of the files.
        ends: Where the rows of each file end.
        rows: Numbers of the rows in their files.
        pairs: Hashes of question and images.
        counts: Images of each row.
        images: Hashes of the images of all rows, one after the other.
    """

    files: Sequence[Path]
    ends: Sequence[int]
    rows: npt.NDArray[Any]
    pairs: npt.NDArray[Any]
    counts: npt.NDArray[Any]
    images: npt.NDArray[Any]

    @classmethod
    def read(cls, pieces: Iterable[tuple[Path, Sequence[Path]]]) -> Hashes:
        """Read those of files, given with their pieces."""
        files, ends = [], []
        columns: dict[str, list[npt.NDArray[Any]]] = {
            name: [np.zeros(0, kind)]
            for name, kind in (("rows", "u4"), ("pairs", "u8"), ("counts", "u2"), ("images", "u8"))
        }
        end = 0
        for file, paths in pieces:
            for path in paths:
                for name, values in hashes_of(path).items():
                    columns[name].append(values)
                end += len(columns["rows"][-1])
            files.append(file)
            ends.append(end)
        joined = {name: np.concatenate(columns.pop(name)) for name in list(columns)}
        return cls(files, ends, **joined)

    def place(self, at: int) -> tuple[int, int]:
        """Return the number of the file, and of the row in it, at a position."""
        file = int(np.searchsorted(self.ends, at, side="right"))
        return file, int(self.rows[at])

    def name(self, at: int, seen_from: int | None = None) -> str:
        """Name the row at a position, without its file where that is the one it is seen from."""
        file, row = self.place(at)
        return f"row {row}" if file == seen_from else f"row {row} of {self.files[file]}"


def duplicates(hashes: Hashes) -> Iterator[tuple[int, int, Finding]]:
    """Yield file, row and finding of rows with the question and images of an earlier one."""
    order = np.argsort(hashes.pairs, kind="stable")
    ordered = hashes.pairs[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    starts = np.searchsorted(ordered, ordered[same], side="left")
    for at, first in sorted(zip(order[same].tolist(), order[starts].tolist(), strict=True)):
        file, row = hashes.place(at)
        where = hashes.name(first, file)
        yield file, row, Finding(f"the question and images of {where} once more", "", "warning")


def leaks(train: Hashes, validation: Hashes) -> Iterator[tuple[int, int, Finding]]:
    """Yield file, row and finding of training rows that validation has, in whole or an image."""
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
            reason = f"question and images are in the validation data too, {validation.name(other)}"
            yield file, row, Finding(reason, "leakage")
            continue
        number = int(known[starts[at] :].argmax())
        image = train.images[starts[at] + number]
        other = theirs[image_order[np.searchsorted(image_ordered, image)]]
        reason = f"image {number + 1} is in the validation data too, {validation.name(other)}"
        yield file, row, Finding(f"{reason}; the questions differ", "leakage", "warning")
