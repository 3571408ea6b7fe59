"""Merge and split data sets by source, the same way each time.

Files are read twice: once for what each row asks, of which a few bytes a row are held, and once to
write the rows that were chosen. Which rows that are depends on the seed and on what rows ask, not
on their order. Rows with the same question about the same images are never on both sides of a
split.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepeyes_plugins.data.changes import Outcome
from deepeyes_plugins.data.dataset_info import DATASET_INFO
from deepeyes_plugins.data.files import data_rows, parquet_schema
from deepeyes_plugins.data.findings import DataError, Problem
from deepeyes_plugins.data.identity import question_words
from deepeyes_plugins.data.media import MediaRoot, is_archived, is_inline, read_media
from deepeyes_plugins.data.rl_checks import RowRules
from deepeyes_plugins.data.rl_repair import common_schema, repair_rl_row
from deepeyes_plugins.data.row_checks import form_findings
from deepeyes_plugins.data.sft_checks import repaired_findings
from deepeyes_plugins.data.sft_repair import repair_sft_row
from deepeyes_plugins.data.sources import Progress, Sources, no_progress
from deepeyes_plugins.data.writers import register_dataset, row_writer
from deepeyes_plugins.protocol.dialect import IMAGE_PLACEHOLDER

_REPORT_EVERY = 100
_NOT_EXTRA = {"messages", "conversations", "images", "system"}


@dataclass(frozen=True, slots=True)
class Amounts:
    """How many rows to take of which source.

    Attributes:
        named: By source: a whole number of rows, or a share from 0.0 to 1.0.
        other: The same for sources that are not named; ``None`` if nothing was said.
    """

    named: Mapping[str, int | float] = field(default_factory=dict)
    other: int | float | None = None

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Amounts:
        """Read ``SOURCE=AMOUNT`` and ``AMOUNT``; with a point an amount is a share.

        Raises:
            DataError: It is neither.
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
        """How many rows to take of a source that has ``rows``."""
        amount = self.named.get(source, self.other)
        if amount is None:
            return default
        return round(amount * rows) if isinstance(amount, float) else min(amount, rows)


@dataclass(slots=True)
class Combined:
    """What was written.

    Attributes:
        files: Rows of each source in each file.
        duplicates: Rows that ask what an earlier one asks.
        short: By source, how many rows were asked for and how many there were, where these were
            fewer.
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
    """Make one file of several.

    Args:
        sources: Files and folders, all parquet or all JSON.
        output: ``.parquet`` or ``.jsonl``; beside the latter an entry in dataset_info.json.
        take: How many rows of which source; by default all.
        by: Column that names a row's source; by default ``data_source``, for JSON ``source``.
            Rows without it have the name of their file.
        seed: Of the choice.
        drop_duplicates: Whether of rows that ask the same only the first is taken.
        media: Where images are that rows name; by default where the sources are.
        progress: Told how it goes on.

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
    """Make a file for training and one for validation.

    Args:
        sources: As for :func:`merge`.
        output: Folder for ``train`` and ``validation``.
        validation: How many rows of which source go to the validation; of others none.
        by: As for :func:`merge`.
        seed: Of the choice.
        media: As for :func:`merge`.
        progress: Told how it goes on.

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
    """The rows of several files, in order, in one form."""

    def __init__(
        self, sources: Sequence[Path], media: Sequence[Path], by: str, progress: Progress
    ) -> None:
        self._sources = Sources.find(
            sources, (".parquet", ".json", ".jsonl"), "parquet or JSON", media
        )
        kinds = {file.suffix == ".parquet" for file in self._sources.files}
        if len(kinds) > 1:
            raise DataError("parquet and JSON files do not go together: RL and SFT have other rows")
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
            raise DataError(f"{output}: of such files the result is a {self.suffix} file")

    def refuse(self, outputs: Sequence[Path]) -> None:
        self._sources.refuse(*outputs)

    def require_sources(self, amounts: Amounts) -> None:
        if unknown := [name for name in amounts.named if name not in self._source_names]:
            known = ", ".join(self._source_names)
            raise DataError(f"there is no source {unknown[0]!r}; there are {known}")

    def scan(self) -> dict[bytes, list[int]]:
        """Read all rows and return which of them ask the same, by what they ask."""
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
            raise DataError(f"no row has a name or number in the column {self._by!r}")
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
        """Choose rows of each source, groups as a whole; 1 for those that are chosen."""
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
        """Write the rows to the target of their number; 0 is for those that are not written."""
        for number, target in targets.items():
            if number not in chosen:
                raise DataError(f"no row is left for {target}; change the amounts")
        first = {}
        if not self.is_rl:  # See prepare: the first row of JSON lines settles their types.
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
                register_dataset(target.with_name(DATASET_INFO), target.stem, target.name)
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
                        f"{file}, row {row.number}: {fault}. `deepeyes data prepare` leaves such "
                        "rows out"
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
            return repair_sft_row(value, locate=self._locate, columns=sorted(self._columns))
        return repair_rl_row(
            value,
            schema=self._schema,
            environment=RowRules().environment,
            read_image=lambda name: read_media(self._locate(name)),
        )

    def _locate(self, name: str) -> str:
        """Take what `prepare` has written as it is: that names places outside of the sources."""
        if is_archived(name) or is_inline(name) or os.path.isabs(name):
            return MediaRoot(None).locate(name)
        return self._sources.places.locate(name)

    def _digest(self, row: Mapping[str, Any]) -> bytes:
        """Name what a row asks: the question's words and images, whatever their order."""
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
