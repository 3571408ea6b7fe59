"""The local table and its scores."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from vlmeval.smp import dump

from eval_plugins.report.tables import read_table
from eval_plugins.vlmevalkit.dataset import DeepEyesQuickstart
from tests.vlmevalkit.conftest import write_table


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeepEyesQuickstart:
    rows = {"red": ("a?", "None"), "blue": ("b?", "1.0"), "lime": ("c?", "B")}
    write_table(tmp_path, rows)
    monkeypatch.setenv("LMUData", str(tmp_path))
    return DeepEyesQuickstart("DeepEyesQuickstart")


def test_the_prompt_is_the_question_as_it_is(dataset: DeepEyesQuickstart) -> None:
    image, text = dataset.build_prompt(1)
    assert (image["type"], text) == ("image", {"type": "text", "value": "b?"})


def test_failed_samples_are_counted_apart(tmp_path: Path, dataset: DeepEyesQuickstart) -> None:
    predictions = ["none", "1", "Failed to obtain answer via API. HTTP 500"]
    table = dataset.data.drop(columns="image").assign(prediction=predictions)
    table.to_excel(tmp_path / "model.xlsx", index=False)

    scores = dataset.evaluate(str(tmp_path / "model.xlsx"))

    expected = {"Overall": 100.0, "answered": 2, "failed": 1, "not_scored": 0}
    assert scores.loc[0].to_dict() == expected
    assert pd.read_csv(tmp_path / "model_acc.csv").loc[0].to_dict() == expected


def test_a_row_without_an_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path, {"red": ("a?", "A"), "blue": ("b?", " ")})
    monkeypatch.setenv("LMUData", str(tmp_path))
    with pytest.raises(ValueError, match=r"Quickstart\.tsv: 1 rows have no answer: index 1"):
        DeepEyesQuickstart("DeepEyesQuickstart")


def test_predictions_may_be_json(tmp_path: Path, dataset: DeepEyesQuickstart) -> None:
    """What ``PRED_FORMAT=json`` makes VLMEvalKit write."""
    table = dataset.data.drop(columns="image").assign(prediction=["None", "1.0", "C"])
    dump(table, str(tmp_path / "model.json"))

    scores = dataset.evaluate(str(tmp_path / "model.json"))

    assert scores.loc[0, "answered"] == 3
    assert scores.loc[0, "Overall"] == pytest.approx(200 / 3, abs=0.1)


@pytest.mark.parametrize("kind", ["xlsx", "tsv", "json"])
def test_an_index_may_look_like_a_number(tmp_path: Path, kind: str) -> None:
    table = pd.DataFrame({"index": ["007", "10"], "prediction": ["NA", "1"]})
    dump(table, str(tmp_path / f"a.{kind}"))
    read = read_table(tmp_path / f"a.{kind}")
    assert read.to_dict("list") == table.to_dict("list")


def test_a_table_that_is_missing_or_incomplete_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMUData", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"DeepEyesQuickstart\.tsv does not exist"):
        DeepEyesQuickstart("DeepEyesQuickstart")
    (tmp_path / "DeepEyesQuickstart.tsv").write_text("index\tquestion\n1\tx\n")
    with pytest.raises(ValueError, match="lacks the columns image, answer"):
        DeepEyesQuickstart("DeepEyesQuickstart")
