"""Scoring of trajectory logs with the rewards, judge and settings of training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.jobs import Advance, Ledger, work_through
from deepeyes_plugins.judge.settings import JudgeSettings
from deepeyes_plugins.plugins import UnknownNameError
from deepeyes_plugins.protocol.content import Message
from deepeyes_plugins.protocol.missing import is_missing
from deepeyes_plugins.rewards.scorer import INFRASTRUCTURE_FAILED, Scorer
from deepeyes_plugins.rewards.settings import RewardSettings
from deepeyes_plugins.rollout.contracts import InfrastructureError, Task
from deepeyes_plugins.rollout.log import FILE_NAME
from deepeyes_plugins.rollout.trajectory import EndReason, Trajectory

Labels = dict[str, int | float | str]
"""Labels of a trajectory; see :class:`Trajectory`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Position of a line in a trajectory log.

    Attributes:
        path: The log.
        number: Line number from 1; 0 if unknown.
        offset: Byte offset of the line.
    """

    path: Path
    number: int = 0
    offset: int = 0

    def read(self) -> Line:
        """Read the line.

        Raises:
            OSError: The log cannot be read.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return Line(self, _text(file.readline()))

    def __str__(self) -> str:
        return f"{self.path}:{self.number}" if self.number else str(self.path)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a trajectory log."""

    place: Place
    text: str

    @property
    def key(self) -> str:
        """Content hash of the line."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def labels(self) -> Labels | None:
        """Labels of the trajectory; ``None`` if the line is not one, for instance truncated."""
        try:
            return _Labelled.model_validate_json(self.text).labels
        except ValidationError:
            return None


class _Labelled(BaseModel):
    """A trajectory, reduced to its labels."""

    labels: Labels = {}


@dataclass(frozen=True, slots=True)
class Reference:
    """Reference answer and question from a data set."""

    ground_truth: str
    question: str = ""


class ScoreRecord(BaseModel):
    """One line of the output.

    ``trajectory`` is the content hash of the scored line, ``settings`` the fingerprint of the
    scoring settings.
    """

    model_config = ConfigDict(extra="forbid")

    trajectory: str
    settings: str
    where: str
    task_id: str
    data_source: str
    labels: Labels = {}
    score: float
    parts: dict[str, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one line.

    Attributes:
        place: Position of the line.
        kind: ``scored``; ``bad`` (not a trajectory, or incomplete); ``unplayed`` (an
            infrastructure error ended the trajectory); ``failed`` (scoring failed, for instance
            without the judge, and can be retried).
        record: The score, if any.
        reason: Why there is no score.
        data_source: The data source, if known.
    """

    place: Place
    kind: Literal["scored", "bad", "unplayed", "failed"]
    record: ScoreRecord | None = None
    reason: str = ""
    data_source: str = ""


def log_files(path: Path) -> list[Path]:
    """Return the log at ``path``, or every ``trajectories.jsonl`` in a folder.

    Raises:
        FileNotFoundError: There is no log.
    """
    found = sorted(path.rglob(FILE_NAME)) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise FileNotFoundError(f"{path}: no such file, or a folder without any {FILE_NAME}")
    return found


def lines_of(paths: Iterable[Path]) -> Iterator[Line]:
    """Yield lines that are not empty; undecodable bytes make a bad line, not an error."""
    for path in paths:
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield Line(Place(path, number, offset), _text(line))
                offset += len(line)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r\n")


def fingerprint(
    rewards: RewardSettings, judge: JudgeSettings, plugins: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return a fingerprint of the settings of rewards, judge and plugins."""
    parts = [rewards.model_dump(mode="json"), judge.model_dump(mode="json"), plugins]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


async def score_log(
    paths: Sequence[Path],
    output: Path,
    scorer: Scorer,
    settings: str,
    references: Mapping[tuple[str, str], Reference] | None = None,
    *,
    concurrency: int = 64,
    restart: bool = False,
    leave_out: Container[str] = frozenset(),
    advance: Advance | None = None,
) -> tuple[list[Outcome], list[ScoreRecord]]:
    """Score the lines of logs that no earlier run with the same settings has scored.

    Args:
        paths: The logs.
        output: JSON lines of scores; existing scores of the same lines are reused.
        scorer: The scorer.
        settings: Fingerprint of the scorer's settings, which identifies reusable scores.
        references: Reference answers by data source and task id; they override recorded ones.
        concurrency: Lines scored concurrently.
        restart: Whether to discard existing scores.
        leave_out: Keys of lines to skip.
        advance: Called with the number of lines done and in total.

    Returns:
        Lines without a score, and all scores.

    Raises:
        SettingsError: A required setting is missing, such as a judge.
        OSError: A file cannot be read or written; finished scores are stored.
    """
    wanted = {key for line in lines_of(paths) if (key := line.key) not in leave_out}
    ledger = Ledger(output, ScoreRecord)
    records = ledger.resume(
        lambda record: not restart and record.settings == settings and record.trajectory in wanted
    )
    done = {record.trajectory for record in records}
    missing = (line for line in lines_of(paths) if line.key in wanted and line.key not in done)
    left: list[Outcome] = []
    tell = advance or (lambda count, total: None)
    tell(len(done), len(wanted))
    outcomes = work_through(
        missing,
        lambda line: score_line(line, scorer, settings, references or {}),
        concurrency=concurrency,
    )
    async with aclosing(outcomes):
        async for outcome in outcomes:
            if outcome.record is None:
                left.append(outcome)
            else:
                ledger.append(outcome.record)
                records.append(outcome.record)
            tell(len(records) + len(left), len(wanted))
    return left, records


async def score_line(
    line: Line,
    scorer: Scorer,
    settings: str,
    references: Mapping[tuple[str, str], Reference],
) -> Outcome:
    """Score one line.

    Args:
        line: The line.
        scorer: The scorer.
        settings: Fingerprint for the record.
        references: Reference answers by data source and task id; they override recorded ones.

    Raises:
        SettingsError: A required setting is missing, such as a judge.
    """
    try:
        trajectory = Trajectory.model_validate_json(line.text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return Outcome(
            line.place, "bad", reason=f"not a trajectory: {where or 'line'}: {first['msg']}"
        )
    source = trajectory.data_source
    known = references.get((source, trajectory.task_id))
    known = known or Reference(trajectory.ground_truth, trajectory.question)
    if is_missing(known.ground_truth):
        reason = f"no reference answer for task {trajectory.task_id!r}: give its data set (--data)"
        return Outcome(line.place, "bad", reason=reason, data_source=source)
    if trajectory.end_reason is EndReason.INFRASTRUCTURE:
        reason = f"it ended with an infrastructure error: {trajectory.error}"
        return Outcome(line.place, "unplayed", reason=reason, data_source=source)
    task = Task(
        trajectory.task_id,
        (Message("user", (known.question,)),),
        data_source=source,
        ground_truth=known.ground_truth,
    )
    try:
        result = await scorer.score(task, trajectory)
    except UnknownNameError as error:
        return Outcome(line.place, "bad", reason=str(error), data_source=source)
    except InfrastructureError as error:
        return Outcome(line.place, "failed", reason=str(error), data_source=source)
    except ValueError as error:
        if isinstance(error, SettingsError):
            raise
        return Outcome(line.place, "bad", reason=str(error), data_source=source)
    if result.parts.get(INFRASTRUCTURE_FAILED):
        return Outcome(line.place, "failed", reason="no judge could be reached", data_source=source)
    record = ScoreRecord(
        trajectory=line.key,
        settings=settings,
        where=str(line.place),
        task_id=trajectory.task_id,
        data_source=source,
        labels=trajectory.labels,
        score=result.score,
        parts=dict(result.parts),
    )
    return Outcome(line.place, "scored", record, data_source=source)
