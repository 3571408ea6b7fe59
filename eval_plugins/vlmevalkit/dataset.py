"""Local question-answer tables that are scored by rules, without a judge and without a network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from vlmeval.dataset.image_base import ImageBaseDataset
from vlmeval.smp import LMUDataRoot, dump, get_intermediate_file_path, load

from deepeyes_plugins.rewards.accuracy import rule_accuracy

logger = logging.getLogger(__name__)

COLUMNS = ("index", "image", "question", "answer")


class DeepEyesQuickstart(ImageBaseDataset):
    """``$LMUData/DeepEyesQuickstart.tsv`` with the columns index, image, question and answer.

    The prompt is the question as it is; a prediction is right if it equals the answer up to case,
    articles, punctuation and the way a number is written.
    """

    TYPE = "VQA"
    DATASET_URL: ClassVar[dict[str, str]] = {"DeepEyesQuickstart": ""}
    JUDGE_FAIL_MARKERS = ()  # rules do not fail; a failed inference is not counted twice

    def load_data(self, dataset: str) -> pd.DataFrame:
        """Read the table; every column is text, so that 1.0 stays 1.0 and None stays None.

        Raises:
            FileNotFoundError: The table is not there; the message says where it belongs.
            ValueError: A column is missing.
        """
        path = Path(LMUDataRoot()) / f"{dataset}.tsv"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist: put the table there, or set LMUData to its folder"
            )
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        missing = [column for column in COLUMNS if column not in table]
        if missing:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
        return table

    def evaluate(self, eval_file: str, **judge_kwargs: Any) -> pd.DataFrame:
        """Score the predictions in ``eval_file``.

        Samples whose inference failed are no wrong answers: they are counted apart.

        Returns:
            One row: ``Overall`` (accuracy of the answered in percent), ``answered``, ``failed``.
            It is also written beside ``eval_file``, as ``…_acc.csv``; the single scores are in
            ``…_results``.
        """
        del judge_kwargs
        table = load(eval_file)
        answers = dict(zip(map(str, self.data["index"]), self.data["answer"], strict=True))
        predictions = table["prediction"].fillna("").astype(str)
        failed = predictions.map(
            lambda text: any(marker in text for marker in self.INFER_FAIL_MARKERS)
        )
        table["answer"] = [answers[str(index)] for index in table["index"]]
        table["score"] = [
            None if lost else rule_accuracy(text, answer)
            for text, answer, lost in zip(predictions, table["answer"], failed, strict=True)
        ]
        dump(table, get_intermediate_file_path(eval_file, "_results"))
        if failed.any():
            logger.warning(
                "%d of %d samples failed and are not scored; --reuse asks them again",
                failed.sum(),
                len(table),
            )
        result = pd.DataFrame(
            {
                "Overall": [100 * table["score"].astype(float).mean()],
                "answered": [int((~failed).sum())],
                "failed": [int(failed.sum())],
            }
        )
        dump(result, get_intermediate_file_path(eval_file, "_acc"))
        return result

    @classmethod
    def report_primary_metric(cls, metrics: dict[str, Any] | None) -> dict[str, float | int]:
        """The accuracy, if anything was answered, and never one of the counts."""
        return {"Overall": metrics["Overall"]} if metrics and "Overall" in metrics else {}
