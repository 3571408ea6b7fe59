"""Rejection sampling: the best trajectories of a log as SFT rows with provenance."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from deepeyes_plugins import files
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.dataset_info import DATASET_INFO
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.formatter import format_row, format_sharegpt
from deepeyes_plugins.data.media import confined
from deepeyes_plugins.data.output import whole_file
from deepeyes_plugins.data.writers import register_dataset
from deepeyes_plugins.files import PARTIAL
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.protocol.dialect import IMAGE_PLACEHOLDER
from deepeyes_plugins.rewards.offline import Place, ScoreRecord, lines_of
from deepeyes_plugins.rollout.contracts import Task
from deepeyes_plugins.rollout.log import IMAGE_FOLDER
from deepeyes_plugins.rollout.trajectory import EndReason, PartRecord, Trajectory
from deepeyes_plugins.selection.questions import BadRow, Question


@dataclass(frozen=True, slots=True)
class Choice:
    """Which trajectories become rows.

    Attributes:
        best: Maximum number of distinct trajectories per question, by score.
        least_score: Minimum score.
        least_accuracy: Minimum part ``acc``.
        least_format: Minimum part ``format``; well formed is 1 in DeepEyesV2, 0 in DeepEyes V1.
    """

    best: int = 1
    least_score: float = 0.0
    least_accuracy: float = 1.0
    least_format: float = 1.0

    def accepts(self, record: ScoreRecord) -> bool:
        """Return whether a trajectory is good enough."""
        return (
            record.score >= self.least_score
            and record.parts.get("acc", record.score) >= self.least_accuracy
            and record.parts.get("format", self.least_format) >= self.least_format
        )


@dataclass(slots=True)
class Made:
    """Result of writing rows.

    Attributes:
        rows: Number of rows written.
        left: Number of dropped trajectories by reason.
        bad: Unusable rows of the questions' files.
    """

    rows: int = 0
    left: Counter[str] = field(default_factory=Counter)
    bad: list[BadRow] = field(default_factory=list)


def write_rows(
    logs: Iterable[Path],
    records: Iterable[ScoreRecord],
    questions: Iterable[Question | BadRow],
    folder: Path,
    name: str,
    choice: Choice,
    *,
    left: Counter[str] | None = None,
    allow_empty: bool = True,
) -> Made:
    """Write ``folder/name.json``, its images, a report and its entry in ``dataset_info.json``.

    ``folder/name.report.jsonl`` lists the number of rows of each question and the reason of each
    bad row.

    Args:
        logs: Trajectory logs, with images in the same folder.
        records: Their scores.
        questions: Questions with prompts and images that the logs lack.
        folder: Folder for the data set.
        name: Name of the data set.
        choice: Which trajectories become rows.
        left: Number of already dropped trajectories by reason.
        allow_empty: Whether to write a data set without rows.

    Raises:
        OSError: A log cannot be read.
        DataError: There are no rows and ``allow_empty`` is off, a file cannot be read or written,
            or ``dataset_info.json`` is invalid; existing files are unchanged.
    """
    made = Made(left=Counter(left or {}))
    good: dict[str, ScoreRecord] = {}
    for record in records:
        if choice.accepts(record):
            good[record.trajectory] = record
        else:
            made.left["not right or not well formed"] += 1
    found: defaultdict[str, list[tuple[ScoreRecord, Place]]] = defaultdict(list)
    for line in lines_of(logs):
        if (key := line.key) in good:
            record = good.pop(key)
            name_in_log = f"{record.data_source}/{record.task_id}"
            found[str(record.labels.get("question") or name_in_log)].append((record, line.place))
    with (
        whole_file(folder / f"{name}.json") as rows,
        whole_file(folder / f"{name}.report.jsonl") as partial,
        rows.open("w", encoding="utf-8") as file,
        partial.open("w", encoding="utf-8") as report,
    ):
        file.write("[")
        for one in itertools.chain(questions, _left_in(found)):
            if isinstance(one, BadRow):
                made.bad.append(one)
                facts = one.facts
            else:
                facts = _write_question(one, found, file, folder, choice.best, made)
            report.write(json.dumps(facts, ensure_ascii=False) + "\n")
        file.write("\n]\n")
        if not made.rows and not allow_empty:
            why = "; ".join(f"{count:,} {reason}" for reason, count in made.left.most_common(5))
            raise DataError(f"no trajectory can be used: {why or 'the logs are empty'}")
    register_dataset(folder / DATASET_INFO, name, f"{name}.json")
    return made


def _left_in(found: dict[str, Any]) -> Iterator[str]:
    """Yield, when iterated last, the names that matched no question of the data."""
    yield from list(found)


def _write_question(
    question: Question | str,
    found: dict[str, list[tuple[ScoreRecord, Place]]],
    file: TextIO,
    folder: Path,
    best: int,
    made: Made,
) -> dict[str, Any]:
    """Write the rows of a question of the data or a name in the log; return its report."""
    task: Task | None = None
    if isinstance(question, str):
        name, candidates = question, found.pop(question)
    else:
        name, task = question.name, question.task
        candidates = found.pop(question.key, []) + found.pop(name, [])
    left: Counter[str] = Counter()
    before = made.rows
    for row in _best(candidates, task, folder, best, left):
        file.write(",\n" if made.rows else "\n")
        file.write(json.dumps(row, ensure_ascii=False))
        made.rows += 1
    made.left += left
    return {"name": name, "rows": made.rows - before, "left_out": dict(left)}


def _best(
    candidates: list[tuple[ScoreRecord, Place]],
    task: Task | None,
    folder: Path,
    count: int,
    left: Counter[str],
) -> Iterator[dict[str, Any]]:
    seen: set[tuple[str, ...]] = set()
    for record, place in sorted(candidates, key=lambda pair: -pair[0].score):
        trajectory = Trajectory.model_validate_json(place.read().text)
        turns = tuple(trajectory.assistant_turns)
        if len(seen) == count:
            left["enough others of the question"] += 1
        elif turns in seen:
            left["the same as another one"] += 1
        else:
            try:
                yield _row(task, trajectory, record, place.path.parent, folder)
            except RowError as error:
                left[str(error)] += 1
            else:
                seen.add(turns)


def _row(
    task: Task | None, trajectory: Trajectory, record: ScoreRecord, log: Path, folder: Path
) -> dict[str, Any]:
    """Convert a trajectory to a row and format it.

    Raises:
        RowError: The formatter refuses it, or an image is missing.
    """
    if trajectory.end_reason is not EndReason.ANSWER:
        raise RowError(f"it ended without an answer ({trajectory.end_reason})")
    messages: list[dict[str, str]] = []
    images: list[EncodedImage | Path] = []

    def add(role: str, parts: Iterable[PartRecord]) -> None:
        parts = list(parts)
        for part in parts:
            if part.image is not None:
                images.append(path := _logged(log, part.image))
                confined(part.image, str(path), (log,), "the log's folder")
        texts = (part.text or "" if part.image is None else IMAGE_PLACEHOLDER for part in parts)
        messages.append({"role": role, "content": "".join(texts)})

    if trajectory.prompt:  # The recorded prompt.
        for message in trajectory.prompt:
            add(message.role, message.parts)
    elif task is None:
        raise RowError("the log has no prompt, and the data (--data) not its question")
    elif not _same_words(trajectory.question, task.question):
        raise RowError("the data has another question under its data source and id")
    else:
        images += task.images
        for asked in task.messages:
            texts = (part if isinstance(part, str) else IMAGE_PLACEHOLDER for part in asked.parts)
            messages.append({"role": asked.role, "content": "".join(texts)})
    for turn in trajectory.turns:
        messages.append({"role": "assistant", "content": turn.text})
        if turn.observation is not None:
            add("user", turn.observation)
    labels = trajectory.labels
    row = {
        "messages": messages,
        "images": [_file_name(image) for image in images],
        "provenance": {
            "teacher": str(labels.get("model", "")),
            "settings": str(labels.get("settings", "")),
            "seed": labels.get("seed"),
            "task_id": trajectory.task_id,
            "data_source": trajectory.data_source,
            "trajectory": record.trajectory,
            "score": record.score,
            # A string, since parts differ between rewards and columns have one type.
            "parts": json.dumps(record.parts, sort_keys=True),
        },
    }
    format_row(format_sharegpt, row)
    for image in images:
        _store(image, folder / _file_name(image))
    return row


def _same_words(logged: str, asked: str) -> bool:
    """Return whether the questions are equal, up to white space."""
    return not logged or logged.split() == asked.split()


def _logged(log: Path, sha256: str) -> Path:
    folder = log / IMAGE_FOLDER
    for kind in ("png", "jpeg", "webp"):  # Listing the folder for each image takes hours.
        if (path := folder / f"{sha256}.{kind}").exists():
            return path
    for path in folder.glob(f"{sha256}.*"):
        if path.suffix != PARTIAL:  # Left by a process that was killed.
            return path
    raise RowError("an image is missing in the folder of the log")


def _file_name(image: EncodedImage | Path) -> str:
    if isinstance(image, Path):
        return f"{IMAGE_FOLDER}/{image.name}"
    return f"{IMAGE_FOLDER}/{image.sha256}.{image.media_type.rpartition('/')[2]}"


def _store(image: EncodedImage | Path, path: Path) -> None:
    if path.exists():
        return
    with files.whole_file(path) as partial:
        if isinstance(image, EncodedImage):
            partial.write_bytes(image.data)
            return
        partial.unlink(missing_ok=True)
        try:
            os.link(image, partial)
        except OSError:  # Another file system.
            shutil.copyfile(image, partial)
