"""Trajectory logs: find them, summarise each line, and match them to VLMEvalKit's samples."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from deepeyes_plugins.rollout.log import FILE_NAME, IMAGE_FOLDER
from deepeyes_plugins.rollout.metrics import SampleRecord
from deepeyes_plugins.rollout.trajectory import Trajectory
from eval_plugins.report.results import Sample

logger = logging.getLogger(__name__)

_ID = re.compile(r"(?P<stem>.*)-[0-9a-f]{12}", re.DOTALL)
_INDEX_LABEL = "index"
_BLANK = re.compile(r"[\s\W_]+")


@dataclass(slots=True, eq=False)
class LoggedTrajectory:
    """One line of a trajectory log: its position, and what metrics and matching need.

    Attributes:
        path: The log file.
        offset: Offset of the line in bytes.
        length: Length of the line in bytes.
        dataset: VLMEvalKit's name of the dataset.
        index: VLMEvalKit's index of the sample, if the id or a label holds it; else empty.
        question: The question, normalised by :func:`comparable`.
        answered: The prediction that VLMEvalKit received, normalised in the same way.
        record: Turns, tokens, calls and times.
        cut: A turn was truncated at the length limit.
        prompt_tokens: Prompt tokens of all turns; ``None`` if a turn does not record them.
    """

    path: Path
    offset: int
    length: int
    dataset: str
    index: str
    question: str
    answered: str
    record: SampleRecord
    cut: bool
    prompt_tokens: int | None

    def load(self) -> Trajectory:
        """Read the whole trajectory.

        Raises:
            OSError: The log was removed.
            ValueError: The line was changed.
        """
        return Trajectory.model_validate_json(self.read())

    def read(self) -> bytes:
        """Read the line.

        Raises:
            OSError: The log was removed.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)

    @property
    def images(self) -> Path:
        """The folder of the images that the trajectory refers to."""
        return self.path.parent / IMAGE_FOLDER


@dataclass(slots=True)
class Matched:
    """The trajectories of one dataset, matched to its samples.

    Attributes:
        by_index: Trajectories by the index of their sample.
        unmatched: Trajectories that belong to no sample.
        repeated: Number of trajectories that a later one of the same sample replaces.
        mismatched: Indices of samples whose prediction differs from their trajectory's answer.
    """

    by_index: dict[str, LoggedTrajectory] = field(default_factory=dict)
    unmatched: list[LoggedTrajectory] = field(default_factory=list)
    repeated: int = 0
    mismatched: list[str] = field(default_factory=list)


def find_logs(folders: Iterable[Path]) -> list[Path]:
    """Find every trajectory log under some folders."""
    found: dict[Path, None] = {}
    for folder in folders:
        for parent, below, files in os.walk(folder):
            below[:] = sorted(set(below) - {IMAGE_FOLDER})
            if FILE_NAME in files:
                found[(Path(parent) / FILE_NAME).resolve()] = None
    return list(found)


def read_logs(paths: Iterable[Path]) -> tuple[list[LoggedTrajectory], list[str]]:
    """Summarise every trajectory.

    Returns:
        The trajectories in the order of the logs, and notes on invalid lines.
    """
    logged: list[LoggedTrajectory] = []
    notes: list[str] = []
    for path in paths:
        bad = 0
        for number, offset, line in _lines(path):
            try:
                logged.append(_summary(path, offset, line))
            except ValidationError as error:
                bad += 1
                if bad == 1:
                    notes.append(f"{path}:{number} is not a trajectory: {error.errors()[0]['msg']}")
        if bad > 1:
            notes.append(f"{path}: {bad} lines are not trajectories")
    return logged, notes


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, offset, line
            offset += len(line)


def _summary(path: Path, offset: int, line: bytes) -> LoggedTrajectory:
    trajectory = Trajectory.model_validate_json(line)
    dataset = str(trajectory.labels.get("benchmark") or trajectory.data_source)
    index = str(trajectory.labels.get(_INDEX_LABEL, ""))
    if not index:
        match = _ID.fullmatch(trajectory.task_id.removeprefix(f"{dataset}/"))
        index = match["stem"] if match else ""
    text = trajectory.answer
    if text is None and trajectory.turns:
        text = trajectory.turns[-1].text.rpartition("</think>")[2]
    return LoggedTrajectory(
        path=path,
        offset=offset,
        length=len(line),
        dataset=dataset,
        index=index,
        question=comparable(trajectory.question),
        answered=comparable(text or ""),
        record=SampleRecord.of(trajectory, 0, {}),
        cut=any(turn.finish_reason == "length" for turn in trajectory.turns),
        prompt_tokens=sum(turn.prompt_tokens for turn in trajectory.turns)
        if all(turn.prompt_tokens for turn in trajectory.turns)
        else None,
    )


def comparable(text: str) -> str:
    """Normalise a text: remove white space, punctuation and case."""
    return (_BLANK.sub("", text) or "".join(text.split())).casefold()


def match(samples: Sequence[Sample], logged: Sequence[LoggedTrajectory]) -> Matched:
    """Find the trajectory of each sample.

    Samples are matched by index (from a label or the task id), else by question and answer. Of
    several trajectories of one sample, the last one with the recorded answer is used.
    """
    matched = Matched()
    predictions = {sample.index: comparable(sample.prediction) for sample in samples}
    questions = {sample.index: comparable(sample.question) for sample in samples}
    by_question: defaultdict[str, list[str]] = defaultdict(list)
    for sample in samples:
        by_question[questions[sample.index]].append(sample.index)

    candidates: defaultdict[str, list[LoggedTrajectory]] = defaultdict(list)
    loose: list[LoggedTrajectory] = []
    for one in logged:
        if one.index in questions and questions[one.index] in one.question:
            candidates[one.index].append(one)
        else:
            loose.append(one)
    texts = sorted((text for text in by_question if text), key=len, reverse=True)
    for one in loose:
        asked = one.question if one.question in by_question else None
        if asked is None:
            asked = next((text for text in texts if text in one.question), None)
        free = [
            index
            for index in by_question.get(asked or "", ())
            if predictions[index] == one.answered
        ]
        if free:
            candidates[next((index for index in free if index not in candidates), free[0])].append(
                one
            )
        else:
            matched.unmatched.append(one)

    for sample in samples:
        own = candidates.get(sample.index)
        if not own:
            continue
        agreeing = [one for one in own if _agrees(sample, predictions[sample.index], one)]
        matched.by_index[sample.index] = (agreeing or own)[-1]
        matched.repeated += len(own) - 1
        if not agreeing:
            matched.mismatched.append(sample.index)
    return matched


def _agrees(sample: Sample, prediction: str, logged: LoggedTrajectory) -> bool:
    if sample.failed:
        return logged.record.end_reason == "infrastructure"
    if not logged.answered:
        return prediction == comparable("Unanswered.")
    # Very long answers are truncated to their end in VLMEvalKit's table.
    return logged.answered == prediction or (
        len(prediction) > 1000 and logged.answered.endswith(prediction)
    )
