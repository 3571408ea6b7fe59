"""From the published files of the search benchmarks to tables, by ``deepeyes eval prepare``."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from deepeyes_plugins.cli.main import app
from tests.vlmevalkit.conftest import png

Row = dict[str, Any]


def prepare(*arguments: str | Path) -> str:
    """Run the command and return what it says; it must succeed."""
    result = CliRunner().invoke(app, ["eval", "prepare", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refusal(*arguments: str | Path) -> str:
    """Run the command, which must fail, and return why."""
    result = CliRunner().invoke(app, ["eval", "prepare", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


def rows_of(table: Path) -> list[Row]:
    with table.open(encoding="utf-8", newline="") as file:
        rows: list[Row] = list(csv.DictReader(file, dialect="excel-tab"))
    for row in rows:
        row["candidates"] = json.loads(row["candidates"])
        row["image_file"] = json.loads(row["image_file"])
    return rows


def fvqa_row(name: str, **changes: Any) -> Row:
    """A row as lmms-lab/FVQA has it."""
    return {
        "prompt": [{"content": f"What is\n{name}?", "role": "user"}],
        "images": [{"bytes": png("red"), "path": None}],
        "reward_model": {
            "candidate_answers": '["Kingdom of Spain", "ESP", " ", null]',
            "ground_truth": "Spain",
            "style": "rule",
        },
        "data_source": "mmsearch_r1/fvqa_test",
        "image_urls": None,
        "data_id": name,
        "category": "search_required",
    } | changes


def write(path: Path, *rows: Row) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_what_data_frames_have_for_no_value_is_none(tmp_path: Path) -> None:
    nan = float("nan")
    unnamed = fvqa_row("x", data_id=nan, category=nan)
    prepare("fvqa-test", write(tmp_path / "a.parquet", unnamed), "--output", tmp_path)
    [row] = rows_of(tmp_path / "FVQA-test.tsv")
    assert (row["index"], row["category"]) == ("0", "")

    for absent in (nan, None, " "):
        reward = {"candidate_answers": "[]", "ground_truth": absent, "style": "rule"}
        source = write(tmp_path / "b.parquet", fvqa_row("x", reward_model=reward))
        said = refusal("fvqa-test", source, "--output", tmp_path)
        assert "reward_model.ground_truth is empty" in said


def test_fvqa(tmp_path: Path) -> None:
    source = write(tmp_path / "fvqa_test.parquet", fvqa_row("fvqa_test_0"), fvqa_row("fvqa_test_1"))

    said = prepare("fvqa-test", source, "--output", tmp_path)

    assert "2 questions" in said
    first, second = rows_of(tmp_path / "FVQA-test.tsv")
    assert first == {
        "index": "fvqa_test_0",
        "image_file": ["images/FVQA-test/fvqa_test_0.png"],
        "question": "What is\nfvqa_test_0?",
        "answer": "Spain",
        "candidates": ["Kingdom of Spain", "ESP"],
        "category": "search_required",
    }
    assert (tmp_path / second["image_file"][0]).read_bytes() == png("red")


def test_tables_go_where_vlmevalkit_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMUData", str(tmp_path))
    prepare("fvqa-test", write(tmp_path / "fvqa.parquet", fvqa_row("a")))
    assert (tmp_path / "FVQA-test.tsv").exists()


def test_mmsearch_asks_with_and_without_images(tmp_path: Path) -> None:
    row = {
        "sample_id": "7",
        "query": "Who won?",
        "query_image": {"bytes": png("blue"), "path": None},
        "gt_answer": "Norris",
        "alternative_gt_answers": ["Lando Norris"],
        "area": "news",
        "subfield": "sports",
    }
    text = row | {"sample_id": "8", "query_image": None, "alternative_gt_answers": []}
    source = write(tmp_path / "end2end.parquet", row, text)

    prepare("mmsearch", source, "--output", tmp_path)
    seen, unseen = rows_of(tmp_path / "MMSearch.tsv")
    assert (seen["candidates"], len(seen["image_file"])) == (["Lando Norris"], 1)
    assert (unseen["question"], unseen["image_file"]) == ("Who won?", [])

    prepare("mmsearch", source, "--output", tmp_path, "--only-with-image")
    assert [row["index"] for row in rows_of(tmp_path / "MMSearch.tsv")] == ["7"]


def infoseek_files(folder: Path, count: int = 2) -> tuple[Path, Path]:
    """Annotations and OVEN's images, which lie in folders of their own."""
    lines = []
    for number in range(count):
        path = folder / "oven" / f"{number:02}" / f"oven_0000000{number}.JPEG"
        path.parent.mkdir(parents=True)
        path.write_bytes(png("lime"))
        line: Row = {
            "data_id": f"infoseek_val_{number:08}",
            "image_id": f"oven_0000000{number}",
            "question": "How tall is it?",
            "answer": ["8.85 km"],
            "answer_eval": [{"wikidata": 8.85, "range": [7.9, 9.8]}],
            "data_split": "val",
        }
        lines.append(json.dumps(line))
    source = folder / "infoseek_val.jsonl"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return source, folder / "oven"


def test_infoseek_with_the_images_of_oven(tmp_path: Path) -> None:
    source, images = infoseek_files(tmp_path)
    prepare("infoseek", source, "--images", images, "--output", tmp_path)
    row, _ = rows_of(tmp_path / "InfoSeek.tsv")
    assert (row["answer"], row["candidates"]) == ("8.85 km", [{"range": [7.9, 9.8]}])
    assert (tmp_path / row["image_file"][0]).read_bytes() == png("lime")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer_eval": [{"range": [7]}]}, "has no range of two numbers"),
        ({"answer_eval": [{"range": None}]}, "has no range of two numbers"),
        ({"answer_eval": "[unknown]"}, "the answers are not a JSON list"),
        ({"answer": []}, "answer is empty"),
    ],
)
def test_an_odd_answer_of_infoseek_is_named(tmp_path: Path, change: Row, reason: str) -> None:
    source, images = infoseek_files(tmp_path, count=1)
    source.write_text(json.dumps(json.loads(source.read_text()) | change))
    refused = refusal("infoseek", source, "--images", images, "--output", tmp_path)
    assert "line 1" in refused and reason in refused


@pytest.mark.parametrize(("answer", "text"), [("Spain", "Spain"), (8, "8"), (["Spain"], "Spain")])
def test_an_answer_of_infoseek_need_not_be_in_a_list(
    tmp_path: Path, answer: object, text: str
) -> None:
    source, images = infoseek_files(tmp_path, count=1)
    change = {"answer": answer, "answer_eval": None}
    source.write_text(json.dumps(json.loads(source.read_text()) | change))
    prepare("infoseek", source, "--images", images, "--output", tmp_path)
    (row,) = rows_of(tmp_path / "InfoSeek.tsv")
    assert (row["answer"], row["candidates"]) == (text, [])


def test_infoseek_drawn_by_a_seed(tmp_path: Path) -> None:
    source, images = infoseek_files(tmp_path, count=9)

    def drawn(seed: int) -> list[str]:
        options = ["--sample", "3", "--seed", str(seed)]
        prepare("infoseek", source, "--images", images, "--output", tmp_path, *options)
        return [row["index"] for row in rows_of(tmp_path / "InfoSeek.tsv")]

    assert len(drawn(0)) == 3 and drawn(0) == sorted(drawn(0))
    assert len({tuple(drawn(seed)) for seed in range(5)}) > 1


def test_infoseek_as_mmsearch_r1_sampled_it(tmp_path: Path) -> None:
    row = fvqa_row("infoseek_0")
    del row["data_id"], row["category"]
    prepare("infoseek", write(tmp_path / "sub_2k.parquet", row), "--output", tmp_path)
    (row,) = rows_of(tmp_path / "InfoSeek.tsv")
    assert (row["index"], row["answer"]) == ("0", "Spain")


def test_names_that_differ_in_odd_characters_only_have_images_of_their_own(tmp_path: Path) -> None:
    shown = {"a/1": png("red"), "a_1": png("blue")}
    rows = [fvqa_row(name, images=[{"bytes": data}]) for name, data in shown.items()]
    prepare("fvqa-test", write(tmp_path / "a.parquet", *rows), "--output", tmp_path)
    for row in rows_of(tmp_path / "FVQA-test.tsv"):
        assert (tmp_path / row["image_file"][0]).read_bytes() == shown[row["index"]]


def test_a_source_that_cannot_be_used_leaves_the_table_before_it_as_it_was(tmp_path: Path) -> None:
    good = write(tmp_path / "a.parquet", fvqa_row("a", images=[{"bytes": png("red")}]))
    prepare("fvqa-test", good, "--output", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    other = fvqa_row("a", images=[{"bytes": png("blue")}])
    refusal("fvqa-test", write(tmp_path / "b.parquet", other, other), "--output", tmp_path)

    (tmp_path / "b.parquet").unlink()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_cannot_be_used_is_named_and_leaves_no_table(tmp_path: Path) -> None:
    broken = {"images": [{"bytes": b"no image", "path": None}]}
    source = write(tmp_path / "a.parquet", fvqa_row("a"), fvqa_row("b", **broken))
    assert "row 1: an image cannot be read" in refusal("fvqa-test", source, "--output", tmp_path)

    twice = write(tmp_path / "b.parquet", fvqa_row("a"), fvqa_row("a"))
    assert "two samples have the index 'a'" in refusal("fvqa-test", twice, "--output", tmp_path)

    other = write(tmp_path / "c.parquet", {"question": "x"})
    assert "lacks the columns prompt, images" in refusal("fvqa-test", other, "--output", tmp_path)

    pointer = tmp_path / "d.parquet"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refusal("infoseek", pointer, "--output", tmp_path)

    source, images = infoseek_files(tmp_path)
    assert "--images" in refusal("infoseek", source, "--output", tmp_path)
    image = images / "01" / "oven_00000001.JPEG"
    image.rename(tmp_path / image.name)
    said = refusal("infoseek", source, "--images", images, "--output", tmp_path)
    assert "line 2: no image 'oven_00000001'" in said
    image.symlink_to(tmp_path / image.name)
    said = refusal("infoseek", source, "--images", images, "--output", tmp_path)
    assert "line 2: image_id: a symbolic link leads to" in said and "--images" in said

    assert not list(tmp_path.glob("*.tsv*"))
