"""VLMEvalKit's verdicts on samples, for the trajectories that answered them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eval_plugins.report.results import find_results
from eval_plugins.report.trajectories import Played, match, read_logs


@dataclass(frozen=True, slots=True)
class Judged:
    """A trajectory that gave a recorded prediction.

    Attributes:
        log: Its log.
        line: Its line there, as it stands.
        score: 0 to 1, as VLMEvalKit scored the prediction.
    """

    log: Path
    line: bytes
    score: float


def judged_trajectories(folders: Iterable[Path], logs: Iterable[Path]) -> Iterator[Judged]:
    """Yield the trajectories behind the scored predictions of an evaluation.

    A trajectory whose answer is not the prediction, for instance since the sample was played again
    later, has no verdict.

    Args:
        folders: Work folders of VLMEvalKit.
        logs: Trajectory logs of one model.

    Raises:
        OSError: Something cannot be read.
    """
    by_dataset: defaultdict[str, list[Played]] = defaultdict(list)
    for one in read_logs(logs)[0]:
        by_dataset[one.dataset].append(one)
    for results in find_results(folders)[0]:
        matched = match(results.samples, by_dataset[results.name])
        for sample in results.samples:
            played = matched.by_index.get(sample.index)
            if played and sample.score is not None and sample.index not in matched.different:
                yield Judged(played.path, played.read(), sample.score)
