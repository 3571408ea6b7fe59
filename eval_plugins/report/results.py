"""Reader of VLMEvalKit's results: predictions, verdicts and scores of each dataset.

Results are read from ``work-dir/MODEL/`` (ms-vlmeval) and ``work-dir/MODEL/T…/`` (upstream).
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from deepeyes_plugins.files import read_json
from deepeyes_plugins.rewards.rules import rule_accuracy
from eval_plugins.report.tables import (
    FAILED,
    TABLE_SUFFIXES,
    Metrics,
    UnreadableTable,
    as_number,
    find_table,
    headline,
    read_metrics,
    read_table,
)

logger = logging.getLogger(__name__)

NO_LETTER = "Failed in Prefetch"
"""VLMEvalKit's marker of an answer without an option that was not sent to a judge."""

_RUN_FOLDER = re.compile(r"T\d{8}([-_].*)?")
# Columns with a sample's score, 0 to 1, in order of preference.
_SCORES = ("hit", "score", "correct", "eval_score", "verifier_score", "verifier_match")
# Columns that explain the score.
_NOTES = ("scored_by", "judge_log", "log", "log_score", "log_extract", "extract_answer", "res")
_MADE_BY_SCORING = {*_SCORES, *_NOTES, "extract"}
_METRIC_FILES = ("_acc", "_score", "_rating", "_metrics", "_scores")
_IGNORED_FOLDERS = {"images", "logs"}


class Scoring(BaseModel):
    """How a dataset was scored; ``*_scoring.json`` beside the results."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    scoring: Literal["upstream", "published"] = "upstream"
    judge: str | None = None
    judge_calls: int | None = None
    judge_failures: int | None = None
    fallback_used: int | None = None


@dataclass(slots=True)
class Sample:
    """One row of a dataset.

    Attributes:
        index: VLMEvalKit's index of the sample within the dataset.
        question: The question column, without options and prompt.
        options: Multiple-choice options by letter.
        reference: The reference answer.
        prediction: The text that VLMEvalKit scored.
        failed: The sample ended with an infrastructure error.
        score: 0 to 1; ``None`` if it failed or was not scored.
        note: Explanation by the scorer or the judge.
        category: Category within the dataset.
        cluster: Cluster for the bootstrap; samples of one cluster are variants of one question.
    """

    index: str
    question: str
    options: dict[str, str]
    reference: str
    prediction: str
    failed: bool
    score: float | None = None
    note: str = ""
    category: str = ""
    cluster: str = ""


@dataclass(slots=True)
class DatasetResults:
    """Results of one model on one dataset.

    Attributes:
        model: VLMEvalKit's name of the model.
        name: VLMEvalKit's name of the dataset.
        folder: Folder of the results.
        predictions: The prediction table, if a readable one exists.
        updated: Modification time of that table, in seconds since the epoch.
        samples: Rows of the dataset.
        metrics: VLMEvalKit's scores.
        headline: Name of the benchmark's main score.
        status: The dataset's entry in ``status.json``.
        scoring: How the dataset was scored.
        verdicts: The table with the samples' scores.
        reconstructed: The scores were recomputed with the benchmark's rule, as no table has them.
        longer: Stems of other datasets in the folder whose names start with this one's.
        failed_since: Description of a newer run without readable results; empty without one.
        problems: Descriptions of files that could not be read.
    """

    model: str
    name: str
    folder: Path
    predictions: Path | None = None
    updated: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    metrics: Metrics = field(default_factory=dict)
    headline: str | None = None
    status: dict[str, Any] = field(default_factory=dict)
    scoring: Scoring = field(default_factory=Scoring)
    verdicts: Path | None = None
    reconstructed: bool = False
    longer: list[str] = field(default_factory=list)
    failed_since: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """Prefix of the names of all its files."""
        return f"{self.model}_{self.name}"


def find_results(folders: Iterable[Path]) -> tuple[list[DatasetResults], list[str]]:
    """Find and read the results under some folders.

    If a model was run on a dataset several times, the newest results are used.

    Returns:
        The results, sorted by model and dataset, and notes about older results.
    """
    newest: dict[tuple[str, str], DatasetResults] = {}
    notes: list[str] = []
    for folder in folders:
        for candidate in _candidates(folder):
            key = (candidate.model, candidate.name)
            known = newest.get(key)
            if known is None:
                newest[key] = candidate
                continue
            older, newer = sorted((known, candidate), key=lambda result: result.updated)
            if _same_file(known.predictions, candidate.predictions):  # One is a link.
                newest[key] = known if known.status or not candidate.status else candidate
                continue
            newest[key] = newer
            newer.failed_since = newer.failed_since or older.failed_since
            if older.predictions is None and _ended(older) > newer.updated:
                reasons = [str(older.status.get("error_message") or ""), *older.problems]
                newer.failed_since = f"the run in {older.folder}: " + (
                    "; ".join(filter(None, reasons)) or "it left no predictions"
                )
            notes.append(
                f"{newer.name}: older results in {older.folder} are ignored; those in "
                f"{newer.folder} are newer"
                if older.predictions is not None
                else f"{newer.name}: a run in {older.folder} left no results; those in "
                f"{newer.folder} are used"
            )
    results = [newest[key] for key in sorted(newest)]
    for result in results:
        _read(result)
    return results, notes


def _ended(result: DatasetResults) -> float:
    """Return the time of the last status update; 0 without one."""
    try:
        return datetime.fromisoformat(result.status["updated_at"]).timestamp()
    except (LookupError, ValueError, TypeError):
        return 0.0


def _same_file(one: Path | None, other: Path | None) -> bool:
    return one is not None and other is not None and one.resolve() == other.resolve()


def _candidates(folder: Path) -> Iterable[DatasetResults]:
    for parent, folders, files in os.walk(folder):
        if "report.json" in files and "index.html" in files:
            folders.clear()  # Output of `deepeyes eval report`.
            continue
        folders[:] = sorted(set(folders) - _IGNORED_FOLDERS)
        here = Path(parent)
        status = _status(here / "status.json") if "status.json" in files else {}
        model = status.get("model_name") or (
            here.parent.name if _RUN_FOLDER.fullmatch(here.name) else here.name
        )
        known = status.get("datasets", {})
        if not known and not any(file.startswith(f"{model}_") for file in files):
            continue
        there = {*known, *_dataset_names(here, model, files, known)}
        names = sorted(there | _asked_for(status))
        for name in names:
            entry = known.get(name)
            status_of_it = entry if isinstance(entry, dict) else {}
            result = DatasetResults(model, name, here, status=status_of_it)
            result.longer = [f"{model}_{other}" for other in names if other.startswith(f"{name}_")]
            result.predictions = find_table(here, result.stem)
            if name not in there:
                result.problems.append(
                    "it was requested on the command line, but the run wrote nothing for it: "
                    "VLMEvalKit skips a dataset that it cannot prepare"
                )
            if result.predictions is not None:
                result.updated = result.predictions.stat().st_mtime
            elif (here / f"{result.stem}.pkl").exists():
                result.problems.append(
                    "its predictions exist only as a pickle, which is not read because unpickling "
                    "can run code: install openpyxl and xlsxwriter, or set PRED_FORMAT=tsv, and "
                    "run with --reuse"
                )
            yield result


def _asked_for(status: Mapping[str, Any]) -> set[str]:
    """Return the datasets that the run's command line names after ``--data``."""
    names: set[str] = set()
    reading = False
    arguments = status.get("argv")
    for argument in arguments if isinstance(arguments, list) else ():
        if str(argument).startswith("-"):
            reading = argument == "--data"
        elif reading:
            names.add(str(argument))
    return names


def _status(path: Path) -> dict[str, Any]:
    try:
        status = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read: %s", path, error)
        return {}
    if not isinstance(status, dict) or not isinstance(status.get("datasets", {}), dict):
        return {}
    return status


def _dataset_names(
    folder: Path, model: str, files: Iterable[str], known: Mapping[str, Any]
) -> list[str]:
    """Return the names in the status file and those of further prediction files."""
    stems = sorted(
        {
            Path(file).stem[len(model) + 1 :]
            for file in files
            if file.startswith(f"{model}_") and Path(file).suffix in TABLE_SUFFIXES
        },
        key=len,
    )
    names = list(known)
    for stem in stems:
        # Verdict and score files have the predictions' name with a suffix.
        derived = any(stem.startswith(f"{name}_") for name in names)
        path = find_table(folder, f"{model}_{stem}")
        if stem in names or path is None or (derived and known):
            continue
        try:
            columns = set(read_table(path))
        except (UnreadableTable, OSError) as error:
            logger.info("%s", error)
            continue
        if {"index", "prediction"} <= columns and not (derived and columns & _MADE_BY_SCORING):
            names.append(stem)
    return names


def _read(result: DatasetResults) -> None:
    """Read predictions, verdicts and scores; record unreadable files as problems."""
    scoring = result.folder / f"{result.stem}_scoring.json"
    if scoring.is_file():
        try:
            result.scoring = Scoring.model_validate_json(scoring.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            result.problems.append(f"{scoring.name} cannot be read: {error}")
    _read_metrics(result)
    if result.predictions is None:
        return
    try:
        table = read_table(result.predictions)
    except (UnreadableTable, OSError) as error:
        result.problems.append(str(error))
        return
    missing = {"index", "prediction"} - set(table)
    if missing:
        result.problems.append(
            f"{result.predictions.name} lacks the columns {', '.join(sorted(missing))}"
        )
        return
    result.samples = [_sample(row) for row in table.to_dict("records")]
    _score(result, table)


def _sample(row: Mapping[str, str]) -> Sample:
    prediction = row["prediction"]
    options = {letter: row[letter] for letter in string.ascii_uppercase if row.get(letter)}
    question = row.get("question", "")
    cluster = row["index"]
    if row.get("qid"):  # DynaMath: variants of one question
        cluster = row["qid"]
    elif row.get("problem_index"):  # MathVerse: one problem with more and less text
        cluster = row["problem_index"]
    elif row.get("cycle_category") and options:  # HRBench: the same options in another order
        cluster = json.dumps([question, sorted(options.values())])
    return Sample(
        index=row["index"],
        question=question,
        options=options,
        reference=row.get("answer", ""),
        prediction=prediction,
        failed=FAILED in prediction,
        category=row.get("category") or row.get("task") or row.get("subject") or "",
        cluster=cluster,
    )


def _sidecars(result: DatasetResults) -> list[Path]:
    """Return the files derived from the predictions, newest first."""
    published = f"{result.stem}_published_"
    paths = [
        path
        for path in result.folder.iterdir()
        if path.name.startswith(f"{result.stem}_")
        and path.suffix in TABLE_SUFFIXES
        and path.stem != f"{result.stem}_scoring"
        and not any(f"{path.stem}_".startswith(f"{longer}_") for longer in result.longer)
        and (result.scoring.scoring == "published") == path.stem.startswith(published)
    ]
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def _score(result: DatasetResults, predictions: pd.DataFrame) -> None:
    by_index = {sample.index: sample for sample in result.samples}
    for path in _sidecars(result):
        if path.stem.endswith(("_acc", "_extract")):
            continue
        try:
            table = read_table(path)
        except (UnreadableTable, OSError):
            continue
        if "index" not in table or not set(table["index"]) & by_index.keys():
            continue
        scores = _scores(table)
        if scores is None:
            continue
        result.verdicts = path
        result.reconstructed = not any(column in table for column in _SCORES)
        notes = [column for column in _NOTES if column in table]
        rows = table.to_dict("records")
        for row, score in zip(rows, scores, strict=True):
            sample = by_index.get(row["index"])
            if sample is not None and not sample.failed:
                sample.score = score
                sample.note = "\n".join(f"{name}: {row[name]}" for name in notes if row[name])
        return
    if _score_simple_vqa(result):
        return
    if result.name.startswith("OCRBench") and "v2" not in result.name:
        result.reconstructed = True
        for sample in result.samples:
            if not sample.failed:
                sample.score = _ocrbench(sample)


def _scores(table: pd.DataFrame) -> list[float | None] | None:
    for column in _SCORES:
        if column in table:
            scores = [as_number(cell) for cell in table[column]]
            if any(score is not None for score in scores) and all(
                score is None or -1 <= score <= 1 for score in scores
            ):
                return [None if score is None or score < 0 else score for score in scores]
    if {"res", "answer"} <= set(table):  # MathVista and MathVision store the extracted answer only.
        return [_same_answer(row) for row in table.to_dict("records")]
    return None


def _same_answer(row: Mapping[str, str]) -> float | None:
    if FAILED in row["res"]:
        return None
    return max(
        rule_accuracy(row["res"], reference)
        for reference in {row["answer"], row.get("answer_option") or row["answer"]}
    )


def _ocrbench(sample: Sample) -> float:
    """Apply OCRBench's rule: one of the reference texts occurs in the answer."""
    try:
        references = [str(reference) for reference in ast.literal_eval(sample.reference)]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        references = [sample.reference]
    if sample.category == "Handwritten Mathematical Expression Recognition":
        given = re.sub(r"\s+", "", sample.prediction)
        return float(any(re.sub(r"\s+", "", reference) in given for reference in references))
    given = sample.prediction.lower().strip().replace("\n", " ")
    return float(
        any(reference.lower().strip().replace("\n", " ") in given for reference in references)
    )


_SIMPLE_VQA_VERDICTS = {"正确": 1.0, "错误": 0.0, "未尝试": 0.0}


def _score_simple_vqa(result: DatasetResults) -> bool:
    """Read SimpleVQA's verdicts: a file with a fixed name, in the order of the predictions."""
    path = result.folder / "gpt_eval.json"
    if result.name != "SimpleVQA" or not path.is_file():
        return False
    try:
        rows = read_json(path.read_text(encoding="utf-8"))
        verdicts = [next(iter(row["judge_res"].values())) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        result.problems.append(f"{path.name} cannot be read: {error}")
        return False
    if len(verdicts) != len(result.samples):
        result.problems.append(
            f"{path.name} has {len(verdicts)} verdicts for {len(result.samples)} samples"
        )
        return False
    result.verdicts = path
    for sample, verdict in zip(result.samples, verdicts, strict=True):
        text = str(verdict.get("conclusion") if isinstance(verdict, dict) else verdict)
        if not sample.failed:
            sample.score = _SIMPLE_VQA_VERDICTS.get(text.replace("*", "").strip())
        sample.note = f"judge: {text}"
    return True


def _read_metrics(result: DatasetResults) -> None:
    found: Metrics = {}
    for path in _sidecars(result):
        if not path.stem.endswith(_METRIC_FILES) and not _is_score_csv(path):
            continue
        try:
            if path.suffix == ".xlsx" and not path.stem.endswith("_acc"):
                continue  # One row per sample.
            for name, value in read_metrics(path).items():
                found.setdefault(name, value)
        except (UnreadableTable, OSError) as error:
            logger.info("%s", error)
    if result.scoring.scoring == "upstream":
        status = result.status.get("metrics")
        for name, value in status.items() if isinstance(status, dict) else ():
            if (number := as_number(value)) is not None:
                found.setdefault(str(name), number)
    result.metrics = found
    result.headline = headline(found)


def _is_score_csv(path: Path) -> bool:
    return path.suffix == ".csv" and "_score" in path.stem


def models_of(results: Sequence[DatasetResults]) -> list[str]:
    """Return the names of the models, sorted."""
    return sorted({result.model for result in results})
