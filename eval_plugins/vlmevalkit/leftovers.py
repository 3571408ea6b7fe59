"""What earlier runs have left in VLMEvalKit's work dir, and what of it must not be used again."""

from __future__ import annotations

import json
import logging
import pickletools
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

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
"""Ends of the files with answers of the model. All others beside the predictions hold scores."""


class Combination(NamedTuple):
    """A model on a dataset."""

    model: str
    dataset: str

    @property
    def stem(self) -> str:
        """What the names of all its files begin with."""
        return f"{self.model}_{self.dataset}"


def failed_samples(folder: Path, combination: Combination) -> int | None:
    """Count the predictions that could not be had; ``None`` if there are no predictions.

    Raises:
        UnreadableTable: They are no table.
        OSError: They cannot be read.
    """
    path = find_table(folder, combination.stem)
    if path is None:
        return None
    table = read_table(path)
    if "prediction" not in table:
        raise UnreadableTable(f"{path} has no column 'prediction'")
    return int(table["prediction"].str.contains(FAILED, regex=False).sum())


def set_broken_checkpoints_aside(folder: Path) -> list[Path]:
    """Rename pickle files that a killed run has left half written.

    VLMEvalKit writes all results anew after each sample, in place. A file that is cut short makes
    ``--reuse`` fail for the whole dataset; without it the samples are asked again.

    Returns:
        The new names.
    """
    renamed = []
    for path in sorted(folder.rglob("*.pkl")):
        if not _is_whole(path):
            renamed.append(path.rename(path.with_name(f"{path.name}.broken")))
            logger.warning("%s is cut short: its samples are asked again", path)
    return renamed


def set_outdated_scores_aside(work_dir: Path, asked: Sequence[Combination]) -> list[Path]:
    """Rename what was scored from predictions of which some are going to be asked again.

    ms-vlmeval keeps predictions and scores in one folder and takes a score that it finds there for
    the new prediction's: a judge's verdicts (MathVista and all that it judges), rules' verdicts
    (multiple choice, MME-RealWorld, TreeBench), even the accuracy (HRBench).

    Returns:
        The new names. Links are left as they are: an upstream checkout gives every run a folder.
    """
    renamed = []
    for combination in asked:
        folder = work_dir / combination.model
        if not folder.is_dir() or not _will_change(folder, combination):
            continue
        suffix = f"{datetime.now():%Y%m%d-%H%M%S}"
        for path in list(_scores(folder, combination, asked)):
            renamed.append(path.rename(path.with_name(f"{path.name}.superseded-{suffix}")))
            logger.info("%s was made of predictions that are asked again", path)
    return renamed


def _will_change(folder: Path, combination: Combination) -> bool:
    try:
        failed = failed_samples(folder, combination)
    except (OSError, UnreadableTable) as error:
        logger.warning("%s; its scores are kept", error)
        return False
    if failed is None:  # Without predictions all are new, but pickled ones cannot be looked into.
        return not (folder / f"{combination.stem}.pkl").exists()
    return failed > 0


def _scores(folder: Path, combination: Combination, asked: Sequence[Combination]) -> Iterator[Path]:
    """The files that scoring has made, without those of datasets with a longer name."""
    known = {other.dataset for other in asked}
    try:
        known |= json.loads((folder / STATUS_FILE).read_text(encoding="utf-8"))["datasets"].keys()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        logger.debug("%s tells no names of datasets", folder)
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
    """Whether a pickle has its end; it is read through, never loaded."""
    try:
        with path.open("rb") as file:
            for _ in pickletools.genops(file):
                pass
    except Exception:  # It says what is wrong by whatever it stumbles on.
        return False
    return True
