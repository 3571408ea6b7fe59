"""What earlier runs have left: half-written pickles, scores of predictions that will change."""

from __future__ import annotations

import pickle
from pathlib import Path

import pandas as pd
import pytest

from eval_plugins.vlmevalkit.launch import expected, rescores_in_place
from eval_plugins.vlmevalkit.leftovers import (
    Combination,
    failed_samples,
    set_broken_checkpoints_aside,
    set_outdated_scores_aside,
)

FAILED = "Failed to obtain answer via API. HTTP 503: overloaded"
SCORES = ("_gpt-4o-mini.xlsx", "_gpt-4o-mini.pkl", "_gpt-4o-mini_score.csv", "_acc.csv")


def run_of(work_dir: Path, dataset: str, *predictions: str) -> set[str]:
    """Write predictions and scores of a dataset; the names of the scores."""
    folder = work_dir / "M"
    folder.mkdir(exist_ok=True)
    table = pd.DataFrame({"index": range(len(predictions)), "prediction": predictions})
    table.to_csv(folder / f"M_{dataset}.tsv", sep="\t", index=False)
    for end in (*SCORES, "_checkpoint.pkl"):
        (folder / f"M_{dataset}{end}").write_bytes(pickle.dumps({"of": dataset}))
    return {f"M_{dataset}{end}" for end in SCORES}


def set_aside(work_dir: Path, *datasets: str) -> set[str]:
    """Names, as they were, of what is set aside; that nothing is lost."""
    asked = [Combination("M", dataset) for dataset in datasets]
    before = {path.name: path.read_bytes() for path in (work_dir / "M").iterdir()}
    renamed = set_outdated_scores_aside(work_dir, asked)
    names = {path.name.rpartition(".superseded-")[0]: path.read_bytes() for path in renamed}
    assert names.items() <= before.items()
    assert {path.name for path in (work_dir / "M").iterdir()} == (before.keys() - names.keys()) | {
        path.name for path in renamed
    }
    return set(names)


def test_scores_of_failed_samples_are_set_aside(tmp_path: Path) -> None:
    scores = run_of(tmp_path, "MathVista_MINI", "42", FAILED)
    run_of(tmp_path, "MathVerse_MINI", "1", "2")
    assert failed_samples(tmp_path / "M", Combination("M", "MathVista_MINI")) == 1
    assert set_aside(tmp_path, "MathVista_MINI", "MathVerse_MINI", "Never") == scores
    assert set_aside(tmp_path, "MathVista_MINI", "MathVerse_MINI", "Never") == set()


def test_another_dataset_whose_name_begins_alike_keeps_its_scores(tmp_path: Path) -> None:
    scores = run_of(tmp_path, "VStarBench", FAILED)
    run_of(tmp_path, "VStarBench_shuffled_0", "A")
    (tmp_path / "M" / "status.json").write_text('{"datasets": {"VStarBench_shuffled_0": {}}}')
    assert set_aside(tmp_path, "VStarBench") == scores


def test_scores_whose_predictions_are_gone_are_set_aside(tmp_path: Path) -> None:
    scores = run_of(tmp_path, "MathVista_MINI", "42")
    (tmp_path / "M" / "M_MathVista_MINI.tsv").unlink()
    assert set_aside(tmp_path, "MathVista_MINI") == scores


def test_pickled_predictions_are_not_looked_into(tmp_path: Path) -> None:
    run_of(tmp_path, "MathVista_MINI", FAILED)
    path = tmp_path / "M" / "M_MathVista_MINI.tsv"
    path.rename(path.with_suffix(".pkl"))
    assert set_aside(tmp_path, "MathVista_MINI") == set()


@pytest.mark.parametrize(
    ("arguments", "anew"),
    [
        (["--reuse"], True),
        (["--mode", "all"], True),
        (["--mode", "eval"], False),
        (["--mode=eval"], False),
        (["--reuse", "--keep-failed"], False),
        (["--reuse", "--api-mode"], False),
    ],
)
def test_scores_stay_where_no_sample_is_repeated(arguments: list[str], anew: bool) -> None:
    assert rescores_in_place(arguments) is anew


def test_models_and_datasets_that_are_asked_for(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"model": {"M": {}}, "data": {"a": {}, "b": {}}}')
    assert expected(["--config", str(recipe)]) == [("M", "a"), ("M", "b")]
    assert expected(["--data", "a", "b"]) == [("DeepEyesV2", "a"), ("DeepEyesV2", "b")]


def test_half_written_pickles_are_set_aside(tmp_path: Path) -> None:
    whole = pickle.dumps({str(index): "an answer" for index in range(1000)})
    (tmp_path / "whole.pkl").write_bytes(whole)
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / f"cut_{length}.pkl").write_bytes(whole[:length])
    renamed = set_broken_checkpoints_aside(tmp_path)
    assert {path.suffixes[-1] for path in renamed} == {".broken"} and len(renamed) == 4
    assert [path.name for path in tmp_path.glob("*.pkl")] == ["whole.pkl"]
