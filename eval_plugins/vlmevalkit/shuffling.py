"""Multiple-choice tables with their options in another order.

Some published tables put the right answer first (V*-style files do), so that a model that likes
the letter A looks better than it is. Passes with several seeds and their mean say how it really is.
"""

from __future__ import annotations

import csv
import random
import re
import string
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PASS = re.compile(r"(?P<base>.+)_shuffled_(?P<seed>\d+)")
"""Name of a shuffled pass: the benchmark's name and the seed."""

_ROTATED = ("cycle_category", "g_index")
"""Columns of benchmarks that ask each question under several orders already."""
_JOINED = r"\s*(?:[,，、&+/]|(?i:and|or)\b|[和与或及])+\s*"
_REFERS = re.compile(
    rf"\A\W*(?i:only\s+|just\s+)?\(?[A-Z]\)?(?:{_JOINED}\(?[A-Z]\)?)+(?i:\s+only)?\W*\Z"
    r"|\A\W*(?i:only|just)\s+\(?[A-Z]\)?\W*\Z|\b(?i:same\s+as)\s+\(?[A-Z]\b|以上|上述|[选選][项項]"
    r"|(?i:\b(?:all|none|both|neither|either|any)\b.{0,20}"
    r"\b(?:above|below|options?|choices?|others?)\b)"
    r"|\b(?i:both|neither|either)\s+\(?[A-Z]\)?\s+(?i:and|n?or)\s+\(?[A-Z]\b"
)


class TableError(ValueError):
    """A table cannot be shuffled; the message says why."""


@dataclass(frozen=True)
class Shuffled:
    """A table that was written.

    Attributes:
        path: The table.
        rows: Its rows.
        kept: Rows in their original order: an option refers to others by their places, or the
            right option is an empty cell.
        before: How often each letter was right.
        after: How often each letter is right now.
    """

    path: Path
    rows: int
    kept: int
    before: Counter[str]
    after: Counter[str]


def pass_name(base: str, seed: int) -> str:
    """The name of a pass, which :data:`PASS` takes apart again."""
    return f"{base}_shuffled_{seed}"


def base_name(dataset: str) -> str:
    """The benchmark that a data set is a pass of; itself if it is none."""
    match = PASS.fullmatch(dataset)
    return match["base"] if match else dataset


def shuffle_table(base: str, seed: int, folder: Path) -> Shuffled:
    """Write ``<folder>/<base>_shuffled_<seed>.tsv``, row by row.

    A row's order depends on the seed and its index only.

    Args:
        base: Name of the benchmark, whose table is ``<folder>/<base>.tsv``.
        seed: Decides the order.
        folder: Where VLMEvalKit looks for tables.

    Raises:
        TableError: There is no such table, or it is not one of options in columns of their own.
    """
    source = folder / f"{base}.tsv"
    if not source.is_file():
        raise TableError(
            f"{source} does not exist: VLMEvalKit downloads it when {base} is first evaluated, "
            "or LMUData names another folder"
        )
    csv.field_size_limit(sys.maxsize)  # Images are cells.
    target = folder / f"{pass_name(base, seed)}.tsv"
    partial = target.with_name(f"{target.name}.partial")
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    kept = 0
    try:
        with (
            source.open(encoding="utf-8", newline="") as old,
            partial.open("w", encoding="utf-8", newline="") as new,
        ):
            reader = csv.DictReader(old, dialect="excel-tab")
            columns = list(reader.fieldnames or [])
            _check_columns(source, columns)
            writer = csv.DictWriter(new, columns, dialect="excel-tab", lineterminator="\n")
            writer.writeheader()
            for number, row in enumerate(reader, 1):
                before[row["answer"]] += 1
                kept += not _shuffle(row, seed, f"{source}, row {number}")
                after[row["answer"]] += 1
                writer.writerow(row)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(target)
    return Shuffled(target, before.total(), kept, before, after)


def _check_columns(source: Path, columns: list[str]) -> None:
    if rotated := [name for name in _ROTATED if name in columns]:
        raise TableError(
            f"{source} asks each question under several orders already (column {rotated[0]}): "
            "there is nothing to shuffle"
        )
    if missing := [name for name in ("index", "A", "B", "answer") if name not in columns]:
        raise TableError(
            f"{source} lacks the columns {', '.join(missing)}: only tables that have a column for "
            "each option can be shuffled"
        )


def _shuffle(row: dict[str, str], seed: int, where: str) -> bool:
    """Put the options of a row in another order; ``False`` if they must stay."""
    letters = [letter for letter in string.ascii_uppercase if row.get(letter)]
    if row["answer"] not in letters:
        if row["answer"] in [*string.ascii_uppercase] and row["answer"] in row:
            return False
        raise TableError(f"{where}: the answer {row['answer']!r} is none of its options {letters}")
    if any(_REFERS.search(row[letter]) for letter in letters):
        return False
    order = random.Random(f"{seed}/{row['index']}").sample(letters, len(letters))
    options = [row[letter] for letter in order]
    answer = letters[order.index(row["answer"])]
    row.update(zip(letters, options, strict=True))
    row["answer"] = answer
    return True
