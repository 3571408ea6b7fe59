"""Write the best trajectories of a log as rows for supervised fine-tuning, with provenance."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.formatter import format_row, format_sharegpt
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.protocol.dialect import IMAGE_PLACEHOLDER
from deepeyes_plugins.rewards.stored import Line, ScoreRecord, lines_of
from deepeyes_plugins.rollout.contracts import Task
from deepeyes_plugins.rollout.log import IMAGE_FOLDER
from deepeyes_plugins.rollout.trajectory import EndReason, Trajectory
from deepeyes_plugins.selection.questions import Question

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which trajectories are kept. The bounds are ours.

    Attributes:
        best: Trajectories of a question at most, distinct ones, by their score.
        least_score: Lowest score.
        least_accuracy: Lowest part ``acc``.
        least_format: Lowest part ``format``; 1 is well formed in DeepEyesV2, 0 in DeepEyes V1.
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


def write_rows(
    logs: Iterable[Path],
    records: Iterable[ScoreRecord],
    questions: Iterable[Question],
    folder: Path,
    name: str,
    choice: Choice,
) -> tuple[int, Counter[str]]:
    """Write ``folder/name.json``, its images and its entry in ``dataset_info.json``.

    Args:
        logs: Trajectory logs; images are beside each.
        records: Their scores.
        questions: With the prompts and images that the logs do not hold.
        folder: Receives the data set.
        name: Of the data set.
        choice: What is kept.

    Returns:
        The number of rows, and the reasons why others were left out.

    Raises:
        OSError: Something cannot be read or written; an earlier file of that name stays.
    """
    left: Counter[str] = Counter()
    good: dict[str, ScoreRecord] = {}
    for record in records:
        if choice.accepts(record):
            good[record.trajectory] = record
        else:
            left["not right or not well formed"] += 1
    found: defaultdict[str, list[tuple[ScoreRecord, Line]]] = defaultdict(list)
    for line in lines_of(logs):
        if line.key in good:
            record = good.pop(line.key)
            name_in_log = f"{record.data_source}/{record.task_id}"
            found[str(record.labels.get("question") or name_in_log)].append((record, line))
    folder.mkdir(parents=True, exist_ok=True)
    partial, count = folder / f"{name}.json.partial", 0
    with partial.open("w", encoding="utf-8") as file:
        file.write("[")
        for question in questions:
            candidates = found.pop(question.key, []) + found.pop(question.name, [])
            for row in _best(candidates, question.task, folder, choice.best, left):
                file.write(",\n" if count else "\n")
                file.write(json.dumps(row, ensure_ascii=False))
                count += 1
        file.write("\n]\n")
    partial.replace(folder / f"{name}.json")
    _describe(folder, name)
    if lost := sum(map(len, found.values())):
        left["its question is not in the data"] += lost
    return count, left


def _best(
    candidates: list[tuple[ScoreRecord, Line]],
    task: Task,
    folder: Path,
    count: int,
    left: Counter[str],
) -> Iterator[dict[str, Any]]:
    seen: set[tuple[str, ...]] = set()
    for record, line in sorted(candidates, key=lambda pair: -pair[0].score):
        trajectory = Trajectory.model_validate_json(line.text)
        turns = tuple(trajectory.assistant_turns)
        if len(seen) == count:
            left["enough others of the question"] += 1
        elif turns in seen:
            left["the same as another one"] += 1
        else:
            try:
                yield _row(task, trajectory, record, line.path.parent, folder)
            except RowError as error:
                left[str(error)] += 1
            else:
                seen.add(turns)


def _row(
    task: Task, trajectory: Trajectory, record: ScoreRecord, log: Path, folder: Path
) -> dict[str, Any]:
    """Make a row that the formatter accepts.

    Raises:
        RowError: It does not, or an image is missing.
    """
    if trajectory.end_reason is not EndReason.ANSWER:
        raise RowError(f"it ended without an answer ({trajectory.end_reason})")
    images: list[EncodedImage | Path] = [*task.images]
    messages = [
        {
            "role": message.role,
            "content": "".join(
                part if isinstance(part, str) else IMAGE_PLACEHOLDER for part in message.parts
            ),
        }
        for message in task.messages
    ]
    for turn in trajectory.turns:
        messages.append({"role": "assistant", "content": turn.text})
        if turn.observation is None:
            continue
        images += (_logged(log, part.image) for part in turn.observation if part.image is not None)
        content = "".join(part.text or IMAGE_PLACEHOLDER for part in turn.observation)
        messages.append({"role": "user", "content": content})
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
            # As text: parts differ between rewards, and columns have one type.
            "parts": json.dumps(record.parts, sort_keys=True),
        },
    }
    format_row(format_sharegpt, row)
    for image in images:
        _store(image, folder / _file_name(image))
    return row


def _logged(log: Path, sha256: str) -> Path:
    path = next((log / IMAGE_FOLDER).glob(f"{sha256}.*"), None)
    if path is None:
        raise RowError("an image of an observation is missing beside the log")
    return path


def _file_name(image: EncodedImage | Path) -> str:
    if isinstance(image, Path):
        return f"{IMAGE_FOLDER}/{image.name}"
    return f"{IMAGE_FOLDER}/{image.sha256}.{image.media_type.rpartition('/')[2]}"


def _store(image: EncodedImage | Path, path: Path) -> None:
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    if isinstance(image, EncodedImage):
        partial.write_bytes(image.data)
    else:
        partial.unlink(missing_ok=True)
        try:
            os.link(image, partial)
        except OSError:  # Another file system.
            shutil.copyfile(image, partial)
    partial.replace(path)


def _describe(folder: Path, name: str) -> None:
    path = folder / "dataset_info.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[name] = {
        "file_name": f"{name}.json",
        "formatting": "deepeyes",
        "columns": {"messages": "messages", "images": "images"},
    }
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
