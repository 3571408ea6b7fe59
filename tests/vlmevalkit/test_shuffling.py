"""Multiple-choice tables in another order, which upstream scores as ever."""

from __future__ import annotations

import base64
import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deepeyes_plugins.cli.main import app
from eval_plugins.report.published import base_name
from eval_plugins.vlmevalkit.shuffling import shuffle_table
from tests.vlmevalkit.conftest import png

COLOURS = ("red", "blue", "lime", "white")


def write_choices(folder: Path, rows: int, extra: dict[str, str] | None = None) -> None:
    """Write VStarBench.tsv, whose right answer is always A: red."""
    image = base64.b64encode(png("red")).decode()
    with (folder / "VStarBench.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, "excel-tab", lineterminator="\n")
        writer.writerow(
            ["index", "image", "question", *"ABCD", "answer", "category", *(extra or {})]
        )
        for index in range(rows):
            row = [index, image, 'Say "which"\ncolour?', *COLOURS, "A", "attributes"]
            writer.writerow([*row, *(extra or {}).values()])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, dialect="excel-tab"))


def shuffle(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["eval", "shuffle", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_passes_differ_by_seed_and_keep_everything_else(tmp_path: Path) -> None:
    write_choices(tmp_path, rows=40)
    code, said = shuffle("VStarBench", "--seeds", "0,7", "--output", tmp_path)
    assert code == 0 and "VStarBench_shuffled_7" in said and "A 40" in said

    original = rows_of(tmp_path / "VStarBench.tsv")
    passes = [rows_of(tmp_path / f"VStarBench_shuffled_{seed}.tsv") for seed in (0, 7)]
    for shuffled in passes:
        for old, new in zip(original, shuffled, strict=True):
            assert new[new["answer"]] == "red"
            assert sorted(new[letter] for letter in "ABCD") == sorted(COLOURS)
            kept = {"index", "image", "question", "category"}
            assert {key: new[key] for key in kept} == {key: old[key] for key in kept}
        assert {row["answer"] for row in shuffled} == set("ABCD")
    assert [row["answer"] for row in passes[0]] != [row["answer"] for row in passes[1]]

    shuffle_table("VStarBench", 7, tmp_path)
    assert rows_of(tmp_path / "VStarBench_shuffled_7.tsv") == passes[1]


@pytest.mark.parametrize(
    "option",
    [
        *("None of the above", "Both A and (B)", "all other options", "A, B", "(A) and (C)"),
        *("A & C", "A, B and C", "Only A", "A and B only", "The same as B"),
        *("以上都不是", "A和B", "选项A正确"),
    ],
)
def test_options_that_speak_of_each_other_stay_where_they_are(tmp_path: Path, option: str) -> None:
    write_choices(tmp_path, rows=5)
    table = tmp_path / "VStarBench.tsv"
    table.write_text(table.read_text().replace("white", option))
    done = shuffle_table("VStarBench", 0, tmp_path)
    assert (done.unchanged, done.after) == (5, {"A": 5})


def test_a_row_whose_right_option_is_empty_stays_as_it_is(tmp_path: Path) -> None:
    write_choices(tmp_path, rows=5)
    table = tmp_path / "VStarBench.tsv"
    table.write_text(table.read_text().replace("\tred\t", "\t\t", 2))
    done = shuffle_table("VStarBench", 0, tmp_path)
    assert done.unchanged == 2
    assert [row["answer"] for row in rows_of(done.path) if not row["A"]] == ["A", "A"]


def test_tables_that_cannot_be_shuffled_are_refused(tmp_path: Path) -> None:
    assert "whole numbers" in shuffle("VStarBench", "--seeds", "0,-1", "--output", tmp_path)[1]
    assert "does not exist" in shuffle("VStarBench", "--output", tmp_path)[1]

    write_choices(tmp_path, rows=1, extra={"cycle_category": "0"})
    assert "needs no shuffling" in shuffle("VStarBench", "--output", tmp_path)[1]

    (tmp_path / "VStarBench.tsv").write_text("index\tquestion\tanswer\n0\tx\ty\n")
    code, said = shuffle("VStarBench", "--output", tmp_path)
    assert code == 1 and "lacks the columns A, B" in said

    (tmp_path / "VStarBench.tsv").write_text("index\tA\tB\tanswer\n0\tx\ty\tC\n")
    assert "row 1: the answer 'C' is not one of" in shuffle("VStarBench", "--output", tmp_path)[1]
    assert not list(tmp_path.glob("*shuffled*"))


def test_upstream_scores_a_pass_with_its_own_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmeval.dataset import build_dataset
    from vlmeval.dataset.image_mcq import ImageMCQDataset

    write_choices(tmp_path, rows=8)
    shuffle_table("VStarBench", 0, tmp_path)
    monkeypatch.setenv("LMUData", str(tmp_path))
    dataset = build_dataset("VStarBench_shuffled_0")

    assert isinstance(dataset, ImageMCQDataset)
    assert "Options:\nA." in dataset.build_prompt(0)[-1]["value"]
    predictions = [
        row["answer"] if row["index"] < 6 else "Z" for row in dataset.data.to_dict("records")
    ]
    table = dataset.data.drop(columns="image").assign(prediction=predictions)
    table.to_excel(tmp_path / "model_VStarBench_shuffled_0.xlsx", index=False)
    scores = dataset.evaluate(
        str(tmp_path / "model_VStarBench_shuffled_0.xlsx"), model="exact_matching"
    )
    assert scores["Overall"][0] == 0.75


def test_a_pass_is_told_by_its_name() -> None:
    assert base_name("VStarBench_shuffled_12") == "VStarBench"
    assert base_name("HRBench4K") == "HRBench4K"
