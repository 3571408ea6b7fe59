"""System prompts of a data set, byte for byte."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.files import data_rows, open_parquet, row_batches, unreadable
from deepeyes_plugins.data.findings import DataError, Problem
from deepeyes_plugins.data.kinds import files_in
from deepeyes_plugins.data.message_parts import plain_contents
from deepeyes_plugins.files import read_json

_REPORT_EVERY = 1000


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """A system prompt of a data set.

    Attributes:
        text: The exact text; ``None`` for rows without a system prompt.
        rows: Number of rows with it.
    """

    text: str | None
    rows: int

    @property
    def name(self) -> str:
        """Short hash of the text, by which the prompt can be chosen."""
        return "none" if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()[:8]


def system_prompts(
    path: Path, progress: Callable[[str, int, int | None], None] = lambda file, done, total: None
) -> list[SystemPrompt]:
    """Return the distinct system prompts of a data set, the most frequent first.

    Args:
        path: RL parquet, of which only prompts are read, SFT JSON, or a folder of such files.
        progress: Called with file, number of rows done, and total rows if known.

    Raises:
        DataError: A file cannot be read to its end, or a system prompt is not text.
    """
    counts: Counter[str | None] = Counter()
    for file in files_in([path]):
        counts += _counted(file, progress)
    return [SystemPrompt(text, count) for text, count in counts.most_common()]


def _counted(path: Path, progress: Callable[[str, int, int | None], None]) -> Counter[str | None]:
    counts: Counter[str | None] = Counter()
    rows = _parquet_prompts(path) if path.suffix == ".parquet" else _json_prompts(path)
    for number, (messages, total) in enumerate(rows, 1):
        text = _system_prompt(messages)
        if text is not None:
            if not isinstance(text, str):
                kind = type(text).__name__
                raise DataError(
                    f"{path}, row {number}: the system prompt is a {kind}, not a string"
                )
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{path}, row {number}: the system prompt contains a lone surrogate"
                ) from error
        counts[text] += 1
        if number % _REPORT_EVERY == 0 or number == total:
            progress(path.name, number, total)
    if not counts:
        raise DataError(f"{path}: the file has no rows")
    return counts


def _parquet_prompts(path: Path) -> Iterator[tuple[Any, int | None]]:
    try:
        with open_parquet(path) as file:
            if "prompt" not in file.schema_arrow.names:
                there = ", ".join(file.schema_arrow.names) or "none"
                raise DataError(
                    f"{path}: the column 'prompt' is missing; the file's columns: {there}"
                )
            for batch in row_batches(file, None, columns=["prompt"]):
                for messages in batch.column("prompt").to_pylist():
                    yield messages, file.metadata.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {unreadable(error)}") from error


def _json_prompts(path: Path) -> Iterator[tuple[Any, int | None]]:
    for row in data_rows(path):
        if row.finding is not None:
            raise DataError(str(Problem(path, row.number, "", row.finding.reason, "error")))
        value = row.value if isinstance(row.value, Mapping) else {}
        system = value.get("system")
        if isinstance(system, str) and system:
            yield [{"role": "system", "content": system}], None
        else:
            yield value.get("messages") or value.get("conversations"), None


def _system_prompt(messages: Any) -> Any:
    """Return a row's system prompt or ``None``; accept JSON messages and parts, as `prepare`."""
    if isinstance(messages, str):
        try:
            messages = read_json(messages)
        except (ValueError, RecursionError):
            return None
    first = messages[0] if isinstance(messages, list) and messages else None
    if not isinstance(first, Mapping) or first.get("role", first.get("from")) != "system":
        return None
    content = first.get("content", first.get("value"))
    try:
        return plain_contents([content], [])[0][0]
    except RowError:
        return content
