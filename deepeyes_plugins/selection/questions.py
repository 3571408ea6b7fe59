"""Questions of RL parquet files, streamed, each with a content hash."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.files import open_parquet, row_batches, unreadable
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.rl_rows import (
    data_source,
    environment_name,
    ground_truth,
    task_from_row,
)
from deepeyes_plugins.protocol.content import ImageError, Message
from deepeyes_plugins.rollout.contracts import Task


@dataclass(frozen=True, slots=True)
class Question:
    """One row.

    Attributes:
        key: Hash of prompt, images and reference answer.
        task: The row as a task.
        environment: Name of its environment.
    """

    key: str
    task: Task
    environment: str

    @property
    def name(self) -> str:
        """Data source and task id, as in logs of training."""
        return f"{self.task.data_source}/{self.task.id}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        file: The file.
        row: Row number from 1.
        reason: What is wrong.
    """

    file: Path
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}"

    @property
    def facts(self) -> dict[str, Any]:
        """The row in a report."""
        where = {"file": str(self.file), "row": self.row}
        return {**where, "verdict": "bad", "reason": self.reason}


def read_rows(
    files: Iterable[Path], columns: Iterable[str] | None = None
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield file, number and content of each row, with a few rows in memory.

    Args:
        files: RL parquet.
        columns: Columns to read, if a file has them; all by default.

    Raises:
        DataError: A file cannot be read; the message names it.
    """
    for path in files:
        number = 0
        try:
            with open_parquet(path) as file:
                known = set(file.schema_arrow.names)
                taken = None if columns is None else [one for one in columns if one in known]
                for batch in row_batches(file, None, taken):
                    for row in batch.to_pylist():
                        number += 1
                        yield path, number, row
        except (pa.ArrowException, OSError) as error:
            where = f"after row {number}" if number else ""
            raise DataError(f"{path}: {unreadable(error, where)}") from error


def read_questions(files: Iterable[Path], environment: str) -> Iterator[Question | BadRow]:
    """Yield the questions and the bad rows of some files.

    Args:
        files: RL parquet.
        environment: Environment of rows that name none.

    Raises:
        DataError: A file cannot be read.
    """
    for path, number, row in read_rows(files):
        try:
            yield question_of(row, environment)
        except (RowError, ImageError) as error:
            yield BadRow(path, number, str(error))


def references_of(files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yield data source and reference answer of rows with both; images are not read.

    Raises:
        DataError: A file cannot be read.
    """
    for _, _, row in read_rows(files, ["data_source", "reward_model"]):
        with contextlib.suppress(RowError):  # Bad rows are not played.
            yield data_source(row), ground_truth(row)


def places(files: Iterable[Path], environment: str) -> Iterator[tuple[str, str]]:
    """Yield environment and data source of every valid row; images are not read.

    Args:
        files: RL parquet.
        environment: Environment of rows that name none.

    Raises:
        DataError: A file cannot be read.
    """
    for _, _, row in read_rows(files, ["env_name", "data_source"]):
        with contextlib.suppress(RowError):  # Bad rows are not played.
            yield environment_name(row, environment), data_source(row)


def question_of(row: dict[str, Any], environment: str) -> Question:
    """Convert a row to a question.

    Raises:
        RowError: The row cannot be used.
        ImageError: One of its images cannot be used.
    """
    task = task_from_row(row)
    for image in task.images:
        _ = image.size
    return Question(_key(task), task, environment_name(row, environment))


def with_system_prompt(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """Return ``messages`` with another system prompt; an empty one removes it."""
    rest = tuple(message for message in messages if message.role != "system")
    return (Message("system", (text,)), *rest) if text else rest


def _key(task: Task) -> str:
    digest = hashlib.sha256(f"{task.data_source}\0{task.ground_truth}\0".encode())
    for message in task.messages:
        digest.update(message.role.encode())
        for part in message.parts:
            text = part if isinstance(part, str) else part.sha256
            digest.update(b"\0" + text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]
