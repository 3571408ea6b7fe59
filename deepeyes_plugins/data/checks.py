"""Check data files before any GPU is taken: every row, every image, with names for what is wrong.

Files are streamed: one of many gigabytes needs the memory of a few rows. Rows are counted from 1.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from deepeyes_plugins import plugins
from deepeyes_plugins.data import rl_rows
from deepeyes_plugins.data.contracts import Conversation, Formatter, RowError
from deepeyes_plugins.data.formatter import doubts, format_row, format_sharegpt
from deepeyes_plugins.data.media import MediaError, MediaRoot, read_media
from deepeyes_plugins.protocol.content import MAXIMUM_ASPECT_RATIO, EncodedImage, ImageError

Level = Literal["error", "warning"]

_ROWS_AT_A_TIME = 16
_BYTES_AT_A_TIME = 4 << 20
_CHARACTERS_AT_A_TIME = 1 << 20
_SETTLING_CHARACTERS = 10 << 20
"""Where in JSON lines Hugging Face datasets has settled on columns and their types."""
_RL_COLUMNS = ("prompt", "data_source", "reward_model")


class DataError(ValueError):
    """A data file cannot be used; the message names rows and reasons."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or unusual about a row.

    Attributes:
        reason: What it is.
        key: The column; empty if it concerns the whole row.
        level: An ``error`` makes the row unusable, a ``warning`` does not.
    """

    reason: str
    key: str = ""
    level: Level = "error"


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding and where it is.

    Attributes:
        file: The file.
        row: Number of the row, counted from 1; ``None`` if the whole file is concerned.
        key: The column; empty if the whole row or file is concerned.
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
    """What a check found in a file.

    Attributes:
        file: The file.
        rows: Rows checked.
        problems: In the order of the rows.
    """

    file: Path
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        """The problems that make a row, or the file, unusable."""
        return [problem for problem in self.problems if problem.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """The problems that do not."""
        return [problem for problem in self.problems if problem.level == "warning"]

    @property
    def ok(self) -> bool:
        """Whether the file and all of its rows can be used."""
        return not self.errors

    @property
    def bad_rows(self) -> int:
        """How many rows cannot be used."""
        return len({problem.row for problem in self.errors} - {None})

    def describe(self, most: int = 10) -> str:
        """Say what the errors are, at most ``most`` of them one by one."""
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
            most: Problems that the message names one by one.

        Raises:
            DataError: The file or some of its rows cannot be used.
        """
        if not self.ok:
            raise DataError(self.describe(most))


def check_sft_file(
    path: str | Path,
    media_root: str | Path | MediaRoot | None = None,
    *,
    formatter: Formatter = format_sharegpt,
    limit: int | None = None,
) -> Report:
    """Check a file for supervised fine-tuning: a JSON array of rows, or JSON lines.

    Args:
        path: The file.
        media_root: Folder or zip file that image paths are relative to; by default the folder of
            ``path``.
        formatter: What reads the rows.
        limit: Rows to check at most.
    """
    path = Path(path)
    if not isinstance(media_root, MediaRoot):
        try:
            media_root = MediaRoot.open(path.parent if media_root is None else media_root)
        except MediaError as error:
            return Report(path, problems=[Problem(path, None, "", str(error), "error")])
    rows = islice(_refuse_late_images(_json_rows(path)), limit)
    return _check(path, rows, partial(sft_findings, formatter=formatter, media_root=media_root))


@dataclass(frozen=True, slots=True)
class RowRules:
    """What rows for reinforcement learning are checked against.

    Attributes:
        environment: Environment of rows in a file without ``env_name``.
        sources: Reward to use for a ``data_source`` that has none of its own name.
        media_root: Folder that image paths are relative to; ``None`` for that of the file.
    """

    environment: str = "deepeyes_v2"
    sources: Mapping[str, str] = field(default_factory=dict)
    media_root: Path | None = None

    def root_of(self, path: Path) -> Path:
        """Folder that the image paths of a file are relative to."""
        return (path.parent if self.media_root is None else self.media_root).absolute()


def check_rl_parquet(
    path: str | Path,
    rules: RowRules | None = None,
    *,
    limit: int | None = None,
    row_groups: range | None = None,
    first_row: int = 1,
    threads: int | None = None,
    keep: Callable[[pa.RecordBatch], None] | None = None,
) -> Report:
    """Check a parquet file for reinforcement learning.

    Args:
        path: The file.
        rules: What its rows have to keep to.
        limit: Rows to check at most.
        row_groups: Those to check; all by default.
        first_row: Number of the first row in them.
        threads: That decode images; by default one per processor, eight at most.
        keep: Is handed every batch of rows as it was read.
    """
    path = Path(path)
    rules = rules or RowRules()
    rows = islice(_parquet_rows(path, row_groups, first_row, keep), limit)
    find = partial(rl_findings, rules=rules, media_root=rules.root_of(path))
    return _check(path, rows, find, threads)


def sft_findings(
    row: Mapping[str, Any], *, formatter: Formatter, media_root: MediaRoot
) -> Iterator[Finding]:
    """Yield what is wrong with a row for supervised fine-tuning; its images are decoded."""
    try:
        conversation = format_row(formatter, row)
    except RowError as error:
        yield Finding(str(error))
        return
    yield from image_findings(conversation, media_root)
    for doubt in doubts(conversation):
        yield Finding(doubt, level="warning")


def image_findings(conversation: Conversation, media_root: MediaRoot) -> Iterator[Finding]:
    """Yield which images of a conversation cannot be found or decoded.

    Args:
        conversation: A formatted row.
        media_root: What paths are relative to.
    """
    for number, image in enumerate(conversation.images, 1):
        yield from _image_findings(number, image, media_root)


def rl_findings(
    row: Mapping[str, Any], *, rules: RowRules, media_root: Path | None = None
) -> Iterator[Finding]:
    """Yield what is wrong with a row for reinforcement learning; its images are decoded."""
    images = row.get("images")
    images = images if isinstance(images, list) else []
    broken = [
        finding
        for number, image in enumerate(images, 1)
        for finding in _image_findings(number, image, media_root)
    ]
    yield from broken or _stretch_findings(images, media_root)
    readers: dict[str, Callable[[Mapping[str, Any]], object]] = {
        "data_source": rl_rows.data_source,
        "reward_model": rl_rows.ground_truth,
        "extra_info": rl_rows.metadata,
    }
    if not broken:
        readers["prompt"] = partial(rl_rows.prompt_messages, media_root=media_root)
    for key, read in readers.items():
        try:
            read(row)
        except RowError as error:
            yield Finding(str(error), key)
    stale = row.get("env_name")
    if current := rl_rows.STALE_ENVIRONMENTS.get(str(stale)):
        yield Finding(f"{stale!r} is a stale name and read as {current!r}", "env_name", "warning")
    name = rl_rows.environment_name(row, rules.environment)
    try:
        plugins.environments()[name]
    except plugins.UnknownNameError as error:
        yield Finding(str(error), "env_name")
    source = row.get("data_source")
    if source and isinstance(source, str):
        try:
            plugins.rewards()[rules.sources.get(source, source)]
        except plugins.UnknownNameError as error:
            hint = "Name the one to use under rewards.sources in agent.yaml."
            yield Finding(f"{error} {hint}", "data_source")


def _image_findings(
    number: int, image: Any, media_root: MediaRoot | Path | None = None
) -> Iterator[Finding]:
    name = f"image {number} ({image})" if isinstance(image, str | Path) else f"image {number}"
    try:
        if isinstance(media_root, MediaRoot):
            if isinstance(image, str):
                image = read_media(media_root.locate(image))
            media_root = None
        _decode(rl_rows.image_from(image, media_root))
    except (RowError, ImageError) as error:
        yield Finding(f"{name}: {error}", "images")


def _stretch_findings(images: Iterable[Any], media_root: Path | None) -> Iterator[Finding]:
    """Yield which images a Qwen-VL processor refuses for their shape."""
    for number, image in enumerate(images, 1):
        width, height = rl_rows.image_from(image, media_root).size
        if max(width, height) > MAXIMUM_ASPECT_RATIO * min(width, height):
            reason = f"image {number}: {width} x {height} pixels, an aspect ratio over 200"
            yield Finding(reason, "images")


def _decode(image: EncodedImage) -> None:
    """Read an image to its last byte; a JPEG at an eighth of its size, which is much faster.

    Raises:
        ImageError: It is none, is cut short, or holds too many pixels.
    """
    width, height = image.size
    try:
        with Image.open(io.BytesIO(image.data)) as opened:
            opened.draft("RGB", (width // 8, height // 8))
            opened.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"cannot be decoded: {error}") from error


@dataclass(frozen=True, slots=True)
class _Row:
    """A row as read; ``finding`` instead of a value where the file cannot be read on.

    ``offset`` is where its line starts, in characters; 0 within a JSON array, which trainers read
    as a whole.
    """

    number: int | None
    value: Any = None
    offset: int = 0
    finding: Finding | None = None


def _check(
    path: Path,
    rows: Iterator[_Row],
    find: Callable[[Mapping[str, Any]], Iterable[Finding]],
    threads: int | None = None,
) -> Report:
    """Check ``rows`` in threads: decoding images is most of the work and holds no lock."""

    def findings(row: _Row) -> list[Finding]:
        if row.finding is not None:
            return [row.finding]
        if not isinstance(row.value, Mapping):
            return [Finding(f"the row is a {type(row.value).__name__}, not an object")]
        return list(find(row.value))

    report = Report(path)
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(rows, _ROWS_AT_A_TIME)):
            for row, found in zip(chunk, pool.map(findings, chunk), strict=True):
                report.rows += row.finding is None
                report.problems += (
                    Problem(path, row.number, one.key, one.reason, one.level) for one in found
                )
    if not report.rows and report.ok:
        report.problems.append(Problem(path, None, "", "the file has no rows", "error"))
    return report


def _json_rows(path: Path) -> Iterator[_Row]:
    try:
        with path.open(encoding="utf-8") as file:
            first = file.read(1)
            while first.isspace():
                first = file.read(1)
            if first == "[":
                yield from _array_rows(file)
            else:
                file.seek(0)
                yield from _line_rows(file)
    except OSError as error:
        yield _Row(None, finding=Finding(f"cannot be read: {error.strerror or error}"))
    except UnicodeDecodeError as error:
        yield _Row(None, finding=Finding(f"is not UTF-8: {error}"))


def _line_rows(file: TextIO) -> Iterator[_Row]:
    number = offset = 0
    for line in file:
        if line.strip():
            number += 1
            try:
                value = json.loads(line)
            except ValueError as error:
                reason = f"not valid JSON, perhaps cut short: {error}"
                yield _Row(number, finding=Finding(reason))
            else:
                yield _Row(number, value, offset)
        offset += len(line)


def _array_rows(file: TextIO) -> Iterator[_Row]:
    """Decode the elements of an array one by one; its ``[`` has been read."""
    decoder = json.JSONDecoder()
    text, number = "", 0
    while True:
        # A row that is not complete yet looks like an error: read on, in growing pieces.
        more = file.read(max(_CHARACTERS_AT_A_TIME, len(text)))
        text += more
        position = 0
        while True:
            start = _skip_space(text, position)
            if number and text[start : start + 1] == ",":
                start = _skip_space(text, start + 1)
            elif text[start : start + 1] == "]":
                return
            elif number and start < len(text):
                reason = f"after row {number} a comma or ] is missing"
                yield _Row(None, finding=Finding(reason))
                return
            try:
                value, position = decoder.raw_decode(text, start)
            except ValueError as error:
                if more:
                    break
                reason = f"not valid JSON, perhaps cut short: {error}"
                yield _Row(number + 1, finding=Finding(reason))
                return
            number += 1
            yield _Row(number, value)
        text = text[position:]


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1].isspace():
        position += 1
    return position


def _refuse_late_images(rows: Iterable[_Row]) -> Iterator[_Row]:
    """Pass rows on, and say so where the first images come too late in JSON lines."""
    settled = False
    for row in rows:
        yield row
        if settled or not isinstance(row.value, Mapping) or not row.value.get("images"):
            continue
        settled = True
        if row.offset > _SETTLING_CHARACTERS:
            reason = (
                "the first row with images, but Hugging Face datasets settles the columns of JSON "
                "lines by their first 10 MiB: move it to the top or write a JSON array"
            )
            yield _Row(row.number, finding=Finding(reason, "images"))


def _parquet_rows(
    path: Path,
    row_groups: range | None,
    first_row: int,
    keep: Callable[[pa.RecordBatch], None] | None,
) -> Iterator[_Row]:
    number = first_row - 1
    try:
        with open_parquet(path) as file:
            missing = [name for name in _RL_COLUMNS if name not in file.schema_arrow.names]
            for name in missing:
                yield _Row(None, finding=Finding("the column is missing", name))
            if missing:
                return
            for batch in row_batches(file, row_groups):
                if keep is not None:
                    keep(batch)
                for value in batch.to_pylist():
                    number += 1
                    yield _Row(number, value)
    except (pa.ArrowException, OSError) as error:
        where = f"behind row {number}" if number else "from its start"
        reason = f"cannot be read as parquet {where}, perhaps cut short: {error}"
        yield _Row(None, finding=Finding(reason))


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file for reading it piece by piece."""
    return pq.ParquetFile(path, buffer_size=_BYTES_AT_A_TIME, pre_buffer=False)


def row_batches(file: pq.ParquetFile, row_groups: range | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of some row groups, a few at a time.

    A row group of more than 2 GiB of nested binary cannot be read at once (Arrow's offsets have 32
    bits), and threads or buffering ahead would hold all of it in memory. What is held is a page or
    two, whose size the writer of the file chose (pyarrow: at most 1,024 rows).
    """
    groups = range(file.num_row_groups) if row_groups is None else row_groups
    yield from file.iter_batches(
        batch_size=_ROWS_AT_A_TIME, row_groups=list(groups), use_threads=False
    )
