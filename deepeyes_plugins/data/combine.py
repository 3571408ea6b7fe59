"""Reproducible merging and splitting of data sets by source.

Files are read twice: once to hash each row's question and images (a few bytes per row in memory),
and once to write the chosen rows. The choice depends on the seed and these hashes, not on the order
of rows. Rows with the same question and images are never on both sides of a split.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepeyes_plugins.data.check.rl import RowRules
from deepeyes_plugins.data.check.rows import form_findings
from deepeyes_plugins.data.check.sft import repaired_findings
from deepeyes_plugins.data.content_hash import question_words
from deepeyes_plugins.data.dataset_info import DATASET_INFO
from deepeyes_plugins.data.files import data_rows, parquet_schema
from deepeyes_plugins.data.findings import DataError, Problem
from deepeyes_plugins.data.media import read_media
from deepeyes_plugins.data.prepare.changes import Outcome
from deepeyes_plugins.data.prepare.rl_rows import common_schema, repair_rl_row
from deepeyes_plugins.data.prepare.sft_rows import repair_sft_row
from deepeyes_plugins.data.sources import Progress, Sources, no_progress
from deepeyes_plugins.data.writers import register_dataset, row_writer
from deepeyes_plugins.protocol.dialect import IMAGE_PLACEHOLDER

_REPORT_EVERY = 100
_NOT_EXTRA = {"messages", "conversations", "images", "system"}


@dataclass(frozen=True, slots=True)
class Amounts:
    """How many rows to take of which source.

    Attributes:
        named: By source: a number of rows, or a share from 0.0 to 1.0.
        other: The same for all other sources; ``None`` if not given.
    """

    named: Mapping[str, int | float] = field(default_factory=dict)
    other: int | float | None = None

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Amounts:
        """Parse ``SOURCE=AMOUNT`` and ``AMOUNT``; an amount with a decimal point is a share.

        Raises:
            DataError: A text is neither.
        """
        named: dict[str, int | float] = {}
        other = None
        for text in texts:
            source, _, number = text.rpartition("=")
            try:
                amount = float(number) if "." in number else int(number)
            except ValueError:
                amount = -1
            if amount < 0 or (isinstance(amount, float) and amount > 1):
                raise DataError(
                    f"{text!r}: expected SOURCE=AMOUNT or AMOUNT, a number of rows such as 100 or "
                    "a share from 0.0 to 1.0"
                )
            if source:
                named[source] = amount
            else:
                other = amount
        return cls(named, other)

    def of(self, source: str, rows: int, default: int) -> int:
        """Return the number of rows to take of a source with ``rows`` rows."""
        amount = self.named.get(source, self.other)
        if amount is None:
            return default
        return round(amount * rows) if isinstance(amount, float) else min(amount, rows)


@dataclass(slots=True)
class Combined:
    """Result of a merge or split.

    Attributes:
        files: Number of rows by file and source.
        duplicates: Number of rows with the question and images of an earlier one.
        short: Requested and available rows, by source with too few.
    """

    files: dict[Path, dict[str, int]]
    duplicates: int
    short: dict[str, tuple[int, int]] = field(default_factory=dict)


def merge(
    sources: Sequence[Path],
    output: Path,
    *,
    take: Amounts | None = None,
    by: str = "",
    seed: int = 0,
    drop_duplicates: bool = False,
    media: Sequence[Path] = (),
    progress: Progress = no_progress,
) -> Combined:
    """Merge several files into one.

    Args:
        sources: Files and folders, all parquet or all JSON.
        output: ``.parquet`` or ``.jsonl``; the latter gets an entry in dataset_info.json.
        take: Number of rows by source; by default all.
        by: Column with a row's source; by default ``data_source``, for JSON ``source``. Rows
            without it use the name of their file.
        seed: Random seed of the choice.
        drop_duplicates: Whether to keep only the first of rows with the same question and images.
        media: Folders and zip files with images; by default the folders of the sources.
        progress: Called with file, number of rows done, and total rows if known.

    Raises:
        DataError: A source cannot be read or has rows that cannot be used, or the output cannot be
            written.
    """
    rows = _Rows(sources, media, by, progress)
    rows.require_suffix(output)
    rows.refuse([output])
    groups = rows.scan()
    chosen = bytearray(b"\1" * len(rows.digests))
    if drop_duplicates:
        for members in groups.values():
            for member in members[1:]:
                chosen[member] = 0
    if take is not None:
        rows.require_sources(take)
        picked = rows.pick(groups, take, seed, among=chosen, default_all=True)
        chosen = bytearray(one & other for one, other in zip(chosen, picked, strict=True))
    duplicates = len(rows.digests) - len(groups)
    return Combined(rows.write({1: output}, chosen), duplicates, rows.short)


def split(
    sources: Sequence[Path],
    output: Path,
    validation: Amounts,
    *,
    by: str = "",
    seed: int = 0,
    media: Sequence[Path] = (),
    progress: Progress = no_progress,
) -> Combined:
    """Split files into training and validation data.

    Args:
        sources: As for :func:`merge`.
        output: Folder for ``train`` and ``validation``.
        validation: Number of validation rows by source; none of other sources.
        by: As for :func:`merge`.
        seed: Random seed of the choice.
        media: As for :func:`merge`.
        progress: As for :func:`merge`.

    Raises:
        DataError: As for :func:`merge`.
    """
    rows = _Rows(sources, media, by, progress)
    train, held_out = (output / f"{name}{rows.suffix}" for name in ("train", "validation"))
    rows.refuse([output, train, held_out])
    groups = rows.scan()
    rows.require_sources(validation)
    chosen = bytearray(one + 1 for one in rows.pick(groups, validation, seed))
    files = rows.write({1: train, 2: held_out}, chosen)
    return Combined(files, len(rows.digests) - len(groups), rows.short)


class _Rows:
    """The rows of several files, in order, with one schema."""

    def __init__(
        self, sources: Sequence[Path], media: Sequence[Path], by: str, progress: Progress
    ) -> None:
        suffixes = (".parquet", ".json", ".jsonl")
        self._sources = Sources.find(sources, suffixes, "parquet or JSON", media, are_prepared=True)
        kinds = {file.suffix == ".parquet" for file in self._sources.files}
        if len(kinds) > 1:
            raise DataError("parquet (RL) and JSON (SFT) files cannot be combined")
        self.is_rl = kinds == {True}
        self.suffix = ".parquet" if self.is_rl else ".jsonl"
        self._by_choice, self._is_named = bool(by), False
        self._by = by or ("data_source" if self.is_rl else "source")
        self._progress = progress
        schemas = map(parquet_schema, self._sources.files)
        self._schema = common_schema(schemas) if self.is_rl else None
        self._columns: dict[str, None] = {}
        self.digests: list[bytes] = []
        self._source_names: dict[str, int] = {}
        self._source_of = array("l")
        self._has_images = bytearray()
        self.short: dict[str, tuple[int, int]] = {}

    def require_suffix(self, output: Path) -> None:
        if output.suffix != self.suffix:
            raise DataError(f"{output}: the output of these files must be a {self.suffix} file")

    def refuse(self, outputs: Sequence[Path]) -> None:
        self._sources.refuse(*outputs)

    def require_sources(self, amounts: Amounts) -> None:
        if unknown := [name for name in amounts.named if name not in self._source_names]:
            known = ", ".join(self._source_names)
            raise DataError(f"there is no source {unknown[0]!r}; there are {known}")

    def scan(self) -> dict[bytes, list[int]]:
        """Read all rows and return row numbers grouped by hash of question and images."""
        groups: dict[bytes, list[int]] = {}
        for number, (source, row) in enumerate(self._stream(checks=True)):
            digest = self._digest(row)
            groups.setdefault(digest, []).append(number)
            self.digests.append(digest)
            self._source_of.append(self._source_names.setdefault(source, len(self._source_names)))
            self._has_images.append(bool(row["images"]))
        if not self.digests:
            raise DataError("the files have no rows")
        if self._by_choice and not self._is_named:
            raise DataError(f"no row has a string or number in the column {self._by!r}")
        return groups

    def pick(
        self,
        groups: Mapping[bytes, Sequence[int]],
        amounts: Amounts,
        seed: int,
        *,
        among: bytearray | None = None,
        default_all: bool = False,
    ) -> bytearray:
        """Choose rows of each source, whole groups at a time; 1 marks chosen rows."""
        among = among or bytearray(b"\1" * len(self.digests))
        rows = Counter(self._source_of[at] for at in range(len(among)) if among[at])
        left = {
            number: amounts.of(name, rows[number], rows[number] if default_all else 0)
            for name, number in self._source_names.items()
        }
        for name, number in self._source_names.items():
            asked = amounts.named.get(name, amounts.other)
            if isinstance(asked, int) and asked > rows[number]:
                self.short[name] = (asked, rows[number])
        key = str(seed).encode()
        order = sorted(groups, key=lambda one: hashlib.blake2b(one, key=key).digest())
        picked = bytearray(len(among))
        for digest in order:
            members = [at for at in groups[digest] if among[at]]
            needed = Counter(self._source_of[at] for at in members)
            if members and all(left[number] >= count for number, count in needed.items()):
                for number, count in needed.items():
                    left[number] -= count
                for at in members:
                    picked[at] = 1
        return picked

    def write(self, targets: Mapping[int, Path], chosen: bytearray) -> dict[Path, dict[str, int]]:
        """Write each row to the target of its number in ``chosen``; 0 means none."""
        for number, target in targets.items():
            if number not in chosen:
                raise DataError(f"no row is left for {target}; change the amounts")
        first = {}
        if not self.is_rl:  # As in prepare: the first rows of JSON lines define the types.
            for number in targets:
                with_images = (
                    at for at, to in enumerate(chosen) if to == number and self._has_images[at]
                )
                first[number] = next(with_images, -1)
        counts: dict[Path, Counter[str]] = {target: Counter() for target in targets.values()}
        with ExitStack() as stack:
            writers = {
                number: stack.enter_context(row_writer(target, self._schema))
                for number, target in targets.items()
            }
            ahead = {at: number for number, at in first.items() if at >= 0}
            if ahead:
                for at, (_, row) in enumerate(self._stream()):
                    if at in ahead:
                        writers[ahead[at]].write(row)
                    if at >= max(ahead):
                        break
            for at, (source, row) in enumerate(self._stream()):
                if number := chosen[at]:
                    counts[targets[number]][source] += 1
                    if at not in ahead:
                        writers[number].write(row)
        if not self.is_rl:
            for target in targets.values():
                info = target.with_name(DATASET_INFO)
                roots = self._sources.places.roots
                register_dataset(info, target.stem, target.name, media_roots=roots)
        return {target: dict(count) for target, count in counts.items()}

    def _stream(self, *, checks: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
        for file in self._sources.files:
            done = 0
            for row in data_rows(file):
                if findings := form_findings(row):
                    raise DataError(str(Problem(file, row.number, "", findings[0].reason, "error")))
                if checks and not self.is_rl:
                    self._columns |= dict.fromkeys(row.value.keys() - _NOT_EXTRA)
                outcome = self._outcome(row.value)
                if checks and not self.is_rl and outcome.row is not None:
                    outcome.faults += repaired_findings(outcome.row)
                if outcome.faults or outcome.row is None:
                    fault = outcome.faults[0]
                    raise DataError(
                        f"{file}, row {row.number}: {fault}. Run `deepeyes data prepare` first, "
                        "which drops such rows"
                    )
                named = row.value.get(self._by)
                if named in (None, "") or not isinstance(named, str | int | float):
                    named = file.stem
                else:
                    self._is_named = True
                yield str(named), outcome.row
                done += 1
                if done % _REPORT_EVERY == 0:
                    self._progress(file.name, done, None)
            self._progress(file.name, done, done)

    def _outcome(self, value: Mapping[str, Any]) -> Outcome:
        if self._schema is None:
            locate = self._sources.places.locate
            return repair_sft_row(value, locate=locate, columns=sorted(self._columns))
        return repair_rl_row(
            value,
            schema=self._schema,
            environment=RowRules().environment,
            read_image=lambda name: read_media(self._sources.places.locate(name)),
        )

    def _digest(self, row: Mapping[str, Any]) -> bytes:
        """Hash the question's words and images, the latter in any order."""
        texts = []
        messages = row["prompt"] if self.is_rl else row["messages"]
        for message in messages if isinstance(messages, list) else []:
            role = message.get("role") if isinstance(message, Mapping) else None
            if role == "assistant":
                break
            if role == "user":
                texts.append(str(message["content"]))
        question = " ".join(texts)
        shown = row["images"][: question.count(IMAGE_PLACEHOLDER)]
        digest = hashlib.blake2b(question_words(question), digest_size=16)
        files = ((image["bytes"] if self.is_rl else read_media(image)) or b"" for image in shown)
        for image in sorted(hashlib.blake2b(data).digest() for data in files):
            digest.update(image)
        return digest.digest()
