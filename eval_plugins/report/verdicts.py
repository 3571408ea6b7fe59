"""Trajectories with VLMEvalKit's verdicts on their answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eval_plugins.report.results import find_results
from eval_plugins.report.trajectories import LoggedTrajectory, match, read_logs


@dataclass(frozen=True, slots=True)
class Judged:
    """A trajectory with the score of its answer.

    Attributes:
        log: The log file.
        line: The trajectory's line in the log, unchanged.
        score: VLMEvalKit's score of the prediction, 0 to 1.
    """

    log: Path
    line: bytes
    score: float


def judged_trajectories(folders: Iterable[Path], logs: Iterable[Path]) -> Iterator[Judged]:
    """Yield the trajectories of an evaluation whose predictions were scored.

    Trajectories whose answer differs from the prediction, for instance because the sample was
    repeated later, are skipped.

    Args:
        folders: Work folders of VLMEvalKit.
        logs: Trajectory logs of one model.

    Raises:
        OSError: A file cannot be read.
    """
    by_dataset: defaultdict[str, list[LoggedTrajectory]] = defaultdict(list)
    for one in read_logs(logs)[0]:
        by_dataset[one.dataset].append(one)
    for results in find_results(folders)[0]:
        matched = match(results.samples, by_dataset[results.name])
        for sample in results.samples:
            logged = matched.by_index.get(sample.index)
            if logged and sample.score is not None and sample.index not in matched.mismatched:
                yield Judged(logged.path, logged.read(), sample.score)
