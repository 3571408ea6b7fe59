"""Rescoring of finished results with the scoring of DeepEyesV2's published results.

The authors' copy of VLMEvalKit (Visual-Agent/DeepEyesV2 at 0373e6e, evaluation/VLMEvalKit) asks a
judge in two places where upstream does not: in multiple choice, if no option is found in the
prediction (``eval_vanilla`` in dataset/utils/multiple_choice.py), and in ChartQA, if the prediction
differs from the reference and not both are numbers (``relaxed_correctness_judge`` in
dataset/utils/vqa_eval.py). This module reads the prediction files instead of changing VLMEvalKit:
upstream's scores stay, any finished run can be rescored, and only VLMEvalKit's option matching and
tolerance comparison are imported.
"""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from vlmeval.dataset.utils.vqa_eval import relaxed_correctness
from vlmeval.smp import dump, get_intermediate_file_path
from vlmeval.smp.file import INFER_FAIL_MSG
from vlmeval.utils.matching_util import can_infer

from deepeyes_plugins.judge.contracts import Comparison
from eval_plugins.report.published import base_name
from eval_plugins.report.tables import read_table
from eval_plugins.vlmevalkit.dataset import check_answers, write_scores
from eval_plugins.vlmevalkit.scoring import Sample, Scoring, as_published, score_samples

logger = logging.getLogger(__name__)

MULTIPLE_CHOICE = ("VStarBench", "HRBench4K", "HRBench8K", "SEEDBench2_Plus")
CHART_QA = "ChartQA_TEST"
"""Benchmarks of the published table that use the fallback."""

_PREDICTIONS = re.compile(
    rf"(?P<model>.+)_(?P<dataset>(?:{'|'.join((*MULTIPLE_CHOICE, CHART_QA))})(?:_shuffled_\d+)?)"
)
_FORMATS = (".xlsx", ".tsv", ".json")


@dataclass(frozen=True)
class Rescored:
    """A prediction file that was rescored.

    Attributes:
        path: The file.
        dataset: Name of the dataset.
        overall: Accuracy of the scored samples, in percent.
        scoring: How it was scored.
        not_scored: Number of samples that failed or have no verdict.
    """

    path: Path
    dataset: str
    overall: float
    scoring: Scoring
    not_scored: int


def prediction_files(folder: Path) -> list[Path]:
    """Find the prediction files in a folder that support this scoring, sorted.

    Links are resolved: VLMEvalKit links the files of its newest run into the folder above.
    """
    found = (
        path
        for path in folder.rglob("*")
        if path.suffix in _FORMATS and _PREDICTIONS.fullmatch(path.stem) and path.is_file()
    )
    once: dict[Path, Path] = {}
    for path in sorted(found, key=lambda path: (path.is_symlink(), path)):
        once.setdefault(path.resolve(), path)
    return sorted(once.values())


def rescore(
    folder: Path,
    config: Path | None = None,
    judge: str | None = None,
    base_url: str | None = None,
) -> Iterator[Rescored]:
    """Rescore the predictions in a folder, one file at a time.

    ``…_published_results``, ``…_published_acc`` and ``…_scoring.json`` are written beside each.

    Args:
        folder: The --work-dir of a run, or a part of it.
        config: agent.yaml; by default what ``DEEPEYES_AGENT_CONFIG`` names.
        judge: Model of the judge; overrides agent.yaml.
        base_url: Base URL of the judge's server; overrides agent.yaml.

    Raises:
        SettingsError: No judge is configured.
        ValueError: A file lacks a column or an answer.
    """
    arguments = {"model": judge, "api_base": base_url, "nproc": 32}
    for path in prediction_files(folder):
        match = _PREDICTIONS.fullmatch(path.stem)
        assert match is not None, path
        dataset = match["dataset"]
        table = read_table(path)
        chart = base_name(dataset) == CHART_QA
        wanted = ("question", "answer", "prediction", *(() if chart else ("A", "B")))
        if missing := [name for name in wanted if name not in table]:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
        check_answers(table, path)
        make = _chart_sample if chart else _choice_sample
        samples = [make(row) for _, row in table.iterrows()]
        scores, scoring = score_samples(samples, arguments, path, config)
        scoring = as_published(scoring, scores)
        summary = write_scores(table, scores, str(path), "_published")
        if "cycle_category" in table:  # HRBench: mean over its rounds.
            rounds = table.assign(score=table["score"].astype(float)).groupby("cycle_category")
            summary["Overall"] = 100 * rounds["score"].mean().mean()
            dump(summary, get_intermediate_file_path(str(path), "_published_acc"))
        scoring.write(Path(get_intermediate_file_path(str(path), "_scoring", "json")))
        row = summary.iloc[0]
        yield Rescored(
            path,
            dataset,
            float(row["Overall"]),
            scoring,
            int(row["failed"] + row["not_scored"]),
        )


def _choice_sample(row: pd.Series) -> Sample:
    """Make a multiple-choice sample: the judge is asked if upstream's rules find no option.

    The authors' judge gets only the letter of the reference; this one also gets the options.
    """
    prediction, answer = row["prediction"], row["answer"]
    options = {letter: row[letter] for letter in string.ascii_uppercase if row.get(letter)}
    found = can_infer(prediction, dict(options))  # Mutates its argument.
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return Sample(
        Comparison(
            f"{row['question']}\n{listed}", f"{answer}. {options.get(answer, '')}", prediction
        ),
        sure=found == answer if found and found != "Z" else None,
        failed=INFER_FAIL_MSG in prediction,
    )


def _chart_sample(row: pd.Series) -> Sample:
    """Make a ChartQA sample: the judge is asked if the relaxed match of non-numbers fails."""
    prediction, answer = row["prediction"].strip(), row["answer"]
    right = relaxed_correctness(answer, prediction)
    numbers = _is_number(prediction) and _is_number(answer)
    return Sample(
        Comparison(row["question"], answer, prediction),
        sure=bool(right) if right or numbers or not prediction else None,
        failed=INFER_FAIL_MSG in prediction,
    )


def _is_number(text: str) -> bool:
    try:
        float(text.removesuffix("%"))
    except ValueError:
        return False
    return True
