"""VLMEvalKit datasets of this package: question-answer tables and their scoring.

VLMEvalKit imports these classes in every process, so scoring is imported only when it is used.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd
from vlmeval.dataset.image_base import ImageBaseDataset
from vlmeval.smp import LMUDataRoot, dump, get_intermediate_file_path

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.media import confined
from deepeyes_plugins.files import read_json
from deepeyes_plugins.protocol.missing import is_missing
from eval_plugins.report.tables import read_table
from eval_plugins.vlmevalkit.constants import (
    NO_VERDICT,
    RULES_ONLY,
    SEARCH_COLUMNS,
    UNANSWERED,
)

if TYPE_CHECKING:
    from eval_plugins.vlmevalkit.benchmarks import Candidate
    from eval_plugins.vlmevalkit.scoring import Sample, Score

logger = logging.getLogger(__name__)


class AnswerTable(ImageBaseDataset):
    """A table ``$LMUData/<name>.tsv`` whose predictions are right, wrong, failed or not scored.

    The prompt is the question unchanged. Samples whose inference failed or that have no verdict do
    not count as wrong; they are counted separately.
    """

    TYPE = "VQA"
    COLUMNS: ClassVar[Sequence[str]] = ()

    def load_data(self, dataset: str) -> pd.DataFrame:
        """Read the table; every column is text, so that ``1.0`` and ``None`` are preserved.

        Raises:
            FileNotFoundError: The table is missing; the message says where it belongs.
            ValueError: A column or an answer is missing.
        """
        path = Path(LMUDataRoot()) / f"{dataset}.tsv"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist: put the table there, or set LMUData to its folder"
            )
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        missing = [column for column in self.COLUMNS if column not in table]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
        check_answers(table, path)
        return table

    def evaluate(self, eval_file: str, **judge_kwargs: Any) -> pd.DataFrame:
        """Score the predictions in ``eval_file``.

        Returns:
            One row: ``Overall`` (accuracy of the scored samples in percent), ``answered``,
            ``failed`` and ``not_scored``. It is also written beside ``eval_file``, as
            ``…_acc.csv``; per-sample scores are in ``…_results``.
        """
        table = read_table(Path(eval_file))
        failed = [
            any(marker in text for marker in self.INFER_FAIL_MARKERS)
            for text in table["prediction"]
        ]
        scores = self.score(table, failed, eval_file, judge_kwargs)
        table["answer"] = list(self.rows(table)["answer"])
        return write_scores(table, scores, eval_file)

    @abstractmethod
    def score(
        self, table: pd.DataFrame, failed: Sequence[bool], eval_file: str, arguments: dict[str, Any]
    ) -> list[Score]:
        """Score every prediction; ``failed`` marks samples whose inference failed."""

    def rows(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Return the dataset's rows in the order of the predictions."""
        data = self.data.set_index(self.data["index"].astype(str))
        return data.loc[predictions["index"].astype(str)]

    @classmethod
    def report_primary_metric(cls, metrics: dict[str, Any] | None) -> dict[str, float | int]:
        """Return the accuracy if anything was scored, never one of the counts."""
        return {"Overall": metrics["Overall"]} if metrics and "Overall" in metrics else {}


class DeepEyesQuickstart(AnswerTable):
    """``$LMUData/DeepEyesQuickstart.tsv`` with the columns index, image, question and answer.

    A prediction is right if it equals the answer up to case, articles, punctuation and number
    format.
    """

    COLUMNS = ("index", "image", "question", "answer")
    DATASET_URL: ClassVar[dict[str, str]] = {"DeepEyesQuickstart": ""}
    JUDGE_FAIL_MARKERS = ()  # Rules do not fail; failed inference is counted elsewhere.

    def score(
        self, table: pd.DataFrame, failed: Sequence[bool], eval_file: str, arguments: dict[str, Any]
    ) -> list[Score]:
        """Score by rules; the judge options are ignored."""
        from deepeyes_plugins.rewards.rules import rule_accuracy
        from eval_plugins.vlmevalkit.scoring import Score

        del eval_file, arguments
        answers = self.rows(table)["answer"]
        return [
            Score(None, "failed") if lost else Score(rule_accuracy(text, answer), "rule")
            for text, answer, lost in zip(table["prediction"], answers, failed, strict=True)
        ]


class DeepEyesSearchQA(AnswerTable):
    """FVQA-test, InfoSeek and MMSearch, as ``deepeyes eval prepare`` writes them.

    Rules accept a prediction that equals the reference or another accepted answer, and reject one
    that certainly differs from all of them. Otherwise the judge of agent.yaml decides, with the
    prompt that training uses for search.
    """

    COLUMNS = SEARCH_COLUMNS
    DATASET_URL: ClassVar[dict[str, str]] = {"FVQA-test": "", "InfoSeek": "", "MMSearch": ""}
    JUDGE_FAIL_MARKERS = (NO_VERDICT,)

    def __init__(
        self,
        dataset: str = "FVQA-test",
        skip_noimg: bool = True,
        scoring: Literal["judge", "rules"] = "judge",
    ) -> None:
        """Read the table and check that a judge is configured before inference starts.

        Args:
            dataset: Name of the dataset and of its table.
            skip_noimg: Ignored: questions without an image are included.
            scoring: ``rules`` uses no judge, as ``--judge exact_matching`` does; paraphrases of the
                reference then count as wrong.

        Raises:
            SettingsError: No judge is configured.
            FileNotFoundError: The table or an image of it is missing.
            ValueError: The table lacks a column, or ``scoring`` is neither.
        """
        if scoring not in ("judge", "rules"):
            raise ValueError(f"scoring is {scoring!r}; it must be 'judge' or 'rules'")
        self._arguments = {"model": RULES_ONLY} if scoring == "rules" else {}
        if scoring == "judge":
            from eval_plugins.vlmevalkit.scoring import check_command_line

            check_command_line()
        super().__init__(dataset, skip_noimg)

    def load_data(self, dataset: str) -> pd.DataFrame:
        """Read the table.

        Raises:
            FileNotFoundError: The table or an image of it is missing.
            ValueError: A column is missing, or an image is outside of ``$LMUData``.
        """
        table = super().load_data(dataset)
        root = Path(LMUDataRoot())

        def located(row: int, name: str) -> str:
            try:
                return confined(name, str(root / name), (root,), "LMUData")
            except RowError as error:
                raise ValueError(f"{dataset}.tsv, row {row}: image_file: {error}") from error

        table["image_file"] = [
            [located(row, name) for name in read_json(names)]
            for row, names in enumerate(table["image_file"], 1)
        ]
        lost = [name for names in table["image_file"] for name in names if not Path(name).is_file()]
        if lost:
            raise FileNotFoundError(f"{dataset}: {len(lost)} images are missing: {lost[0]}, …")
        return table

    def build_prompt(self, line: int | pd.Series) -> list[dict[str, str]]:
        """Build the prompt: the question's images, as published, and its text."""
        row = self.data.iloc[line] if isinstance(line, int) else line
        images = [{"type": "image", "value": name} for name in row["image_file"]]
        return [*images, {"type": "text", "value": row["question"]}]

    def score(
        self, table: pd.DataFrame, failed: Sequence[bool], eval_file: str, arguments: dict[str, Any]
    ) -> list[Score]:
        """Score by rules, then by the judge; write a summary to ``…_scoring.json``."""
        from eval_plugins.vlmevalkit.scoring import score_samples

        samples = [
            _sample(row, text, lost)
            for (_, row), text, lost in zip(
                self.rows(table).iterrows(), table["prediction"], failed, strict=True
            )
        ]
        scores, scoring = score_samples(samples, arguments | self._arguments, Path(eval_file))
        scoring.write(Path(get_intermediate_file_path(eval_file, "_scoring", "json")))
        return scores


def check_answers(table: pd.DataFrame, path: Path) -> None:
    """Check that every row has a reference answer.

    Raises:
        ValueError: Rows have none; the message names their indices.
    """
    empty = [str(index) for index in table.loc[table["answer"].map(is_missing), "index"]]
    if empty:
        raise ValueError(
            f"{path}: {len(empty)} rows have no answer: index {', '.join(empty[:5])}"
            f"{', …' if len(empty) > 5 else ''}"
        )


def write_scores(
    table: pd.DataFrame, scores: Sequence[Score], eval_file: str, kind: str = ""
) -> pd.DataFrame:
    """Write the single scores and their summary beside ``eval_file``.

    Args:
        table: The predictions.
        scores: One for each.
        eval_file: File with the predictions.
        kind: Part of the files' names, ``…_<kind>_results`` and ``…_<kind>_acc``.

    Returns:
        One row: ``Overall`` in percent, ``answered``, ``failed``, ``not_scored``.
    """
    table["score"] = [score.value for score in scores]
    table["scored_by"] = [score.scored_by for score in scores]
    table["judge_log"] = [score.log for score in scores]
    dump(table, get_intermediate_file_path(eval_file, f"{kind}_results"))
    failed = sum(score.scored_by == "failed" for score in scores)
    lost = sum(score.scored_by == "no verdict" for score in scores)
    if failed or lost:
        logger.warning(
            "of %d samples %d failed and %d have no verdict: they are not scored. --reuse repeats "
            "failed samples, another evaluation asks the judge again",
            len(table),
            failed,
            lost,
        )
    result = pd.DataFrame(
        {
            "Overall": [100 * table["score"].astype(float).mean()],
            "answered": [len(table) - failed],
            "failed": [failed],
            "not_scored": [lost],
        }
    )
    dump(result, get_intermediate_file_path(eval_file, f"{kind}_acc"))
    return result


def _sample(row: pd.Series, prediction: str, failed: bool) -> Sample:
    from deepeyes_plugins.judge.contracts import Comparison
    from eval_plugins.vlmevalkit.scoring import Sample

    candidates: list[Candidate] = read_json(row["candidates"])
    names = [text for text in candidates if isinstance(text, str) and text != row["answer"]]
    ranges = [entry["range"] for entry in candidates if isinstance(entry, dict)]
    reference = row["answer"]
    if names:
        reference += f"\nAlso accepted: {'; '.join(dict.fromkeys(names))}"
    for low, high in ranges:
        reference += f"\nAlso accepted: any value from {low:g} to {high:g}"
    comparison = Comparison(row["question"], reference, prediction)
    return Sample(comparison, _sure(prediction, [row["answer"], *names], ranges), failed)


def _sure(prediction: str, answers: Sequence[str], ranges: Sequence[list[float]]) -> bool | None:
    """Return the rules' verdict: right if any answer matches, wrong if none can, else ``None``."""
    from deepeyes_plugins.rewards.rules import rule_verdict

    if not prediction.strip() or prediction == UNANSWERED:
        return False
    verdicts = {rule_verdict(prediction, answer) for answer in answers}
    if True in verdicts or any(_within(prediction, low, high) for low, high in ranges):
        return True
    return False if verdicts == {False} and not ranges else None


def _within(prediction: str, low: float, high: float) -> bool:
    try:
        return low <= float(prediction.replace(",", "").strip().rstrip(".")) <= high
    except ValueError:
        return False
