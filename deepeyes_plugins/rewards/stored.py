"""Score trajectories that were stored before, with the code, judge and settings of training."""

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
from deepeyes_plugins.rewards.scoring import INFRASTRUCTURE_FAILED, Scorer
from deepeyes_plugins.rewards.settings import RewardSettings
from deepeyes_plugins.rollout.contracts import InfrastructureError, Task
from deepeyes_plugins.rollout.log import FILE_NAME
from deepeyes_plugins.rollout.trajectory import EndReason, Trajectory

Labels = dict[str, int | float | str]
"""Where a trajectory was played; see :class:`Trajectory`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line of a trajectory log stands: all that has to be held of it.

    Attributes:
        path: The log.
        number: Of the line, counted from 1; 0 where it is not known.
        offset: Where the line starts, in bytes.
    """

    path: Path
    number: int = 0
    offset: int = 0

    def read(self) -> Line:
        """Read the line, again.

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
    """One line of a trajectory log, and where it stands."""

    place: Place
    text: str

    @property
    def key(self) -> str:
        """Names the line by its content, wherever it stands."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def labels(self) -> Labels | None:
        """The labels of the trajectory; ``None`` if the line is none, for instance cut short."""
        try:
            return _Labelled.model_validate_json(self.text).labels
        except ValidationError:
            return None


class _Labelled(BaseModel):
    """A trajectory, of which nothing but its labels is looked at."""

    labels: Labels = {}


@dataclass(frozen=True, slots=True)
class Reference:
    """What a data set knows of a question."""

    ground_truth: str
    question: str = ""


class ScoreRecord(BaseModel):
    """One line of the output.

    ``trajectory`` names the scored line by its content and ``settings`` what it was scored by.
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
    """What became of one line.

    Attributes:
        place: Of the line.
        kind: ``scored``; ``bad`` (no trajectory, or without what scoring needs); ``unplayed`` (a
            failure of ours ended the trajectory: there is nothing to score); ``failed`` (it could
            not be scored now, for instance without the judge: try again).
        record: The score, if it was.
        reason: Why not, else.
        data_source: As far as it is known.
    """

    place: Place
    kind: Literal["scored", "bad", "unplayed", "failed"]
    record: ScoreRecord | None = None
    reason: str = ""
    data_source: str = ""


def log_files(path: Path) -> list[Path]:
    """Return the logs behind ``path``: a file, or every ``trajectories.jsonl`` below a folder.

    Raises:
        FileNotFoundError: There is none.
    """
    found = sorted(path.rglob(FILE_NAME)) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise FileNotFoundError(f"{path}: no such file, or a folder without any {FILE_NAME}")
    return found


def lines_of(paths: Iterable[Path]) -> Iterator[Line]:
    """Yield the lines that are not empty; undecodable bytes make a bad line, not an error."""
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
    """Name what scores depend on: the settings of rewards, judge and plugins."""
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
    """Score the lines of some logs that an earlier run under the same settings has not scored.

    Args:
        paths: The logs.
        output: JSON lines of scores; what is there is kept as far as it belongs to the lines.
        scorer: With the judge.
        settings: The fingerprint of the scorer's settings, which tells old scores from these.
        references: Reference answers by data source and task id; they win over recorded ones.
        concurrency: Lines in work at a time.
        restart: Score everything anew.
        leave_out: Keys of lines that are passed over.
        advance: Is told of progress.

    Returns:
        What has no score, and all scores.

    Raises:
        SettingsError: The settings lack what a reward needs, such as a judge.
        OSError: A file cannot be read or written; what was scored before is kept.
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
        scorer: With the judge.
        settings: The fingerprint for the record.
        references: Reference answers by data source and task id; they win over recorded ones.

    Raises:
        SettingsError: The settings lack what a reward needs, such as a judge.
    """
    try:
        trajectory = Trajectory.model_validate_json(line.text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return Outcome(
            line.place, "bad", reason=f"no trajectory: {where or 'line'}: {first['msg']}"
        )
    source = trajectory.data_source
    known = references.get((source, trajectory.task_id))
    known = known or Reference(trajectory.ground_truth, trajectory.question)
    if is_missing(known.ground_truth):
        reason = f"no reference answer for task {trajectory.task_id!r}: give its data set (--data)"
        return Outcome(line.place, "bad", reason=reason, data_source=source)
    if trajectory.end_reason is EndReason.INFRASTRUCTURE:
        reason = f"a failure of ours ended it: {trajectory.error}"
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
