"""Shuffling of multiple-choice options.

Some published tables (V*-style files) list the right answer first, which favours a model with a
bias toward the letter A. The mean over several shuffled passes removes this bias.
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

_ROTATED = ("cycle_category", "g_index")
"""Columns of benchmarks that already repeat each question with permuted options."""
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
    """A shuffled table.

    Attributes:
        path: The table.
        rows: Number of rows.
        unchanged: Number of rows in their original order: an option refers to others by position,
            or the right option is an empty cell.
        before: How often each letter is the right answer in the original.
        after: How often each letter is the right answer in the shuffled table.
    """

    path: Path
    rows: int
    unchanged: int
    before: Counter[str]
    after: Counter[str]


def shuffle_table(base: str, seed: int, folder: Path) -> Shuffled:
    """Write ``<folder>/<base>_shuffled_<seed>.tsv``, row by row.

    The order of a row's options depends only on the seed and the row's index.

    Args:
        base: Name of the benchmark, whose table is ``<folder>/<base>.tsv``.
        seed: Random seed.
        folder: VLMEvalKit's folder of tables.

    Raises:
        TableError: The table does not exist, or does not have one column per option.
    """
    source = folder / f"{base}.tsv"
    if not source.is_file():
        raise TableError(
            f"{source} does not exist: VLMEvalKit downloads it when {base} is first evaluated, "
            "or LMUData names another folder"
        )
    csv.field_size_limit(sys.maxsize)  # Images are cells.
    target = folder / f"{base}_shuffled_{seed}.tsv"  # As SHUFFLED of the report.
    partial = target.with_name(f"{target.name}.partial")
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    unchanged = 0
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
                unchanged += not _shuffle(row, seed, f"{source}, row {number}")
                after[row["answer"]] += 1
                writer.writerow(row)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(target)
    return Shuffled(target, before.total(), unchanged, before, after)


def _check_columns(source: Path, columns: list[str]) -> None:
    if rotated := [name for name in _ROTATED if name in columns]:
        raise TableError(
            f"{source} already has each question with several orders of its options (column "
            f"{rotated[0]}): it needs no shuffling"
        )
    if missing := [name for name in ("index", "A", "B", "answer") if name not in columns]:
        raise TableError(
            f"{source} lacks the columns {', '.join(missing)}: only tables with one column per "
            "option can be shuffled"
        )


def _shuffle(row: dict[str, str], seed: int, where: str) -> bool:
    """Shuffle the options of a row; return ``False`` if they must keep their order."""
    letters = [letter for letter in string.ascii_uppercase if row.get(letter)]
    if row["answer"] not in letters:
        if row["answer"] in [*string.ascii_uppercase] and row["answer"] in row:
            return False
        raise TableError(f"{where}: the answer {row['answer']!r} is not one of {letters}")
    if any(_REFERS.search(row[letter]) for letter in letters):
        return False
    order = random.Random(f"{seed}/{row['index']}").sample(letters, len(letters))
    options = [row[letter] for letter in order]
    answer = letters[order.index(row["answer"])]
    row.update(zip(letters, options, strict=True))
    row["answer"] = answer
    return True
