"""Cleanup of VLMEvalKit's work dir: truncated checkpoints and outdated scores of earlier runs."""

from __future__ import annotations

import logging
import pickletools
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from deepeyes_plugins.files import read_json
from eval_plugins.report.tables import (
    FAILED,
    TABLE_SUFFIXES,
    UnreadableTable,
    find_table,
    read_table,
)

logger = logging.getLogger(__name__)

STATUS_FILE = "status.json"

_ASKING = ("_checkpoint.pkl", "_PREV.pkl")
"""Suffixes of files with the model's answers; other files named after predictions hold scores."""


class Combination(NamedTuple):
    """A model on a dataset."""

    model: str
    dataset: str

    @property
    def stem(self) -> str:
        """Prefix of the names of all its files."""
        return f"{self.model}_{self.dataset}"


def failed_samples(folder: Path, combination: Combination) -> int | None:
    """Count the failed samples; ``None`` if there are no predictions.

    Raises:
        UnreadableTable: The predictions are not a table.
        OSError: The predictions cannot be read.
    """
    path = find_table(folder, combination.stem)
    if path is None:
        return None
    table = read_table(path)
    if "prediction" not in table:
        raise UnreadableTable(f"{path} has no column 'prediction'")
    return int(table["prediction"].str.contains(FAILED, regex=False).sum())


def set_broken_checkpoints_aside(folder: Path) -> list[Path]:
    """Rename truncated pickle files of a killed run.

    VLMEvalKit rewrites its checkpoint in place after each sample. A truncated file makes
    ``--reuse`` fail for the whole dataset; without the file the samples are repeated.

    Returns:
        The new names.
    """
    renamed = []
    for path in sorted(folder.rglob("*.pkl")):
        if not _is_whole(path):
            renamed.append(path.rename(path.with_name(f"{path.name}.broken")))
            logger.warning("%s is truncated: its samples are repeated", path)
    return renamed


def set_outdated_scores_aside(work_dir: Path, asked: Sequence[Combination]) -> list[Path]:
    """Rename score files whose predictions will be repeated in part.

    ms-vlmeval stores predictions and scores in one folder and reuses scores that it finds there,
    even if the prediction has changed: judge verdicts (MathVista and others), rule verdicts
    (multiple choice, MME-RealWorld, TreeBench), and the accuracy itself (HRBench).

    Returns:
        The new names. Links are not renamed: an upstream checkout has one folder per run.
    """
    renamed = []
    for combination in asked:
        folder = work_dir / combination.model
        if not folder.is_dir() or not _will_change(folder, combination):
            continue
        suffix = f"{datetime.now():%Y%m%d-%H%M%S}"
        for path in list(_scores(folder, combination, asked)):
            renamed.append(path.rename(path.with_name(f"{path.name}.superseded-{suffix}")))
            logger.info("%s was computed from predictions that are repeated", path)
    return renamed


def _will_change(folder: Path, combination: Combination) -> bool:
    try:
        failed = failed_samples(folder, combination)
    except (OSError, UnreadableTable) as error:
        logger.warning("%s; its scores are reused", error)
        return False
    if failed is None:  # Without predictions all samples run; pickled predictions are not read.
        return not (folder / f"{combination.stem}.pkl").exists()
    return failed > 0


def _scores(folder: Path, combination: Combination, asked: Sequence[Combination]) -> Iterator[Path]:
    """Yield the score files, except those of datasets whose names start with this one's."""
    known = {other.dataset for other in asked}
    try:
        known |= read_json((folder / STATUS_FILE).read_text(encoding="utf-8"))["datasets"].keys()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        logger.debug("%s has no readable list of datasets", folder / STATUS_FILE)
    longer = [
        f"{combination.model}_{name}"
        for name in known
        if name.startswith(f"{combination.dataset}_")
    ]
    for path in sorted(folder.glob(f"{combination.stem}_*")):
        if (
            path.suffix in (*TABLE_SUFFIXES, ".pkl")
            and not path.name.endswith(_ASKING)
            and not any(path.name.startswith((f"{stem}.", f"{stem}_")) for stem in longer)
            and path.is_file()
            and not path.is_symlink()
        ):
            yield path


def _is_whole(path: Path) -> bool:
    """Return whether a pickle is complete; its opcodes are parsed, never executed."""
    try:
        with path.open("rb") as file:
            for _ in pickletools.genops(file):
                pass
    except Exception:  # A truncated pickle raises many types.
        return False
    return True
