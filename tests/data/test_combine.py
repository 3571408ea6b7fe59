"""Merging and splitting are the same each time, and no question is on both sides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepeyes_plugins.data.check.rl import check_rl_parquet
from deepeyes_plugins.data.check.sft import check_sft_file
from deepeyes_plugins.data.combine import Amounts, merge, split
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.prepare import prepare_sft
from tests.data.test_checks import PLAIN, image_bytes, with_image, write
from tests.data.test_media import zipped

IMAGES = [image_bytes() for _ in range(2)]


def rl_row(number: int, source: str, image: int = 0) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": f"<image>What is {number}?"}],
        "images": [{"bytes": IMAGES[image], "path": None}],
        "data_source": source,
        "reward_model": {"ground_truth": str(number), "style": "rule"},
        "env_name": "deepeyes_v2",
    }


@pytest.fixture
def rl_files(tmp_path: Path) -> Path:
    """Two files, with every third question of the first also in the second."""
    folder = tmp_path / "in"
    folder.mkdir()
    first = [rl_row(number, "perception") for number in range(60)]
    second = [rl_row(number, "reason", image=1) for number in range(40)]
    again = [rl_row(number, "perception") for number in range(0, 60, 3)]
    pq.write_table(pa.Table.from_pylist(first), folder / "a.parquet")
    pq.write_table(pa.Table.from_pylist(second + again), folder / "b.parquet")
    return folder


def asked(path: Path) -> list[tuple[str, bytes]]:
    rows = pq.read_table(path).to_pylist()
    return [(row["prompt"][0]["content"], row["images"][0]["bytes"]) for row in rows]


@pytest.mark.parametrize("seed", range(3))
def test_no_question_is_on_both_sides(seed: int, rl_files: Path, tmp_path: Path) -> None:
    amounts = Amounts.parse(["perception=10", "0.25"])

    combined = split([rl_files], tmp_path / "out", amounts, seed=seed)

    train, validation = combined.files
    assert not set(asked(train)) & set(asked(validation))
    assert len(asked(train)) + len(asked(validation)) == 120
    assert combined.files[validation] == {"perception": 10, "reason": 10}
    assert combined.duplicates == 20
    assert check_rl_parquet(train).ok and check_rl_parquet(validation).ok


def test_the_choice_depends_on_the_seed_and_not_on_the_order(
    rl_files: Path, tmp_path: Path
) -> None:
    amounts = Amounts.parse(["0.2"])
    held_out = {
        name: set(asked(list(split(files, tmp_path / name, amounts, seed=seed).files)[1]))
        for name, files, seed in (
            ("first", [rl_files / "a.parquet", rl_files / "b.parquet"], 0),
            ("again", [rl_files / "b.parquet", rl_files / "a.parquet"], 0),
            ("other", [rl_files], 1),
        )
    }
    assert held_out["first"] == held_out["again"] != held_out["other"]
    split([rl_files], tmp_path / "same", amounts, seed=0)
    written = [(tmp_path / name / "train.parquet").read_bytes() for name in ("first", "same")]
    assert written[0] == written[1]


def test_merge_takes_what_is_asked_for(rl_files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"

    assert merge([rl_files], out).files == {out: {"perception": 80, "reason": 40}}
    take = Amounts.parse(["reason=0.5", "perception=7"])
    some = merge([rl_files], out, take=take, drop_duplicates=True)

    assert some.files == {out: {"perception": 7, "reason": 20}}
    assert len(set(asked(out))) == 27
    whole = merge([rl_files], out, drop_duplicates=True)
    assert whole.files == {out: {"perception": 60, "reason": 40}}


def test_case_white_space_and_place_of_an_image_make_no_other_question(tmp_path: Path) -> None:
    rows = [rl_row(1, "perception") for _ in range(3)]
    rows[1]["prompt"][0]["content"] = "what  IS 1? <image>"
    rows[2]["prompt"][0]["content"] = "<image>What is 2?"
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "x.parquet")

    combined = merge([tmp_path / "in"], tmp_path / "out.parquet", drop_duplicates=True)

    assert [text for text, _ in asked(tmp_path / "out.parquet")] == [
        "<image>What is 1?",
        "<image>What is 2?",
    ]
    assert combined.duplicates == 1


def test_sft_rows_keep_their_images_and_columns(tmp_path: Path) -> None:
    """Images keep their places though the rows move elsewhere; sources are files or a column."""
    folder = tmp_path / "in"
    folder.mkdir()
    zipped(folder / "images.zip", {"images/1.png": IMAGES[0], "images/copy.png": IMAGES[0]})
    (folder / "2.png").write_bytes(IMAGES[1])
    same = [with_image("images/1.png"), with_image("images/copy.png")]
    write(folder / "a.json", [PLAIN, *same, with_image("2.png")])
    write(folder / "b.jsonl", [PLAIN | {"source": "c", "kept": [number]} for number in range(2)])

    combined = split([folder], tmp_path / "out", Amounts.parse(["a=3", "0"]))

    train, validation = combined.files
    assert combined.duplicates == 3
    assert combined.files == {train: {"a": 1, "c": 2}, validation: {"a": 3}}
    rows = [json.loads(line) for file in (train, validation) for line in file.open()]
    assert len(rows) == 6
    assert {row["kept"] for row in rows} == {"", "[0]", "[1]"}
    assert check_sft_file(train).problems == check_sft_file(validation).problems == []
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert info.keys() == {"train", "validation"}


def test_sources_can_be_numbers_and_have_to_be_there(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{number}?"}, PLAIN["messages"][1]]}
        | {"level": number % 2}
        for number in range(4)
    ]
    source = write(tmp_path / "x.json", rows)
    out = tmp_path / "out" / "all.jsonl"

    combined = merge([source], out, by="level", take=Amounts.parse(["1=1"]))

    assert combined.files == {out: {"0": 2, "1": 1}}
    with pytest.raises(DataError, match="no row has a string or number in the column 'levle'"):
        merge([source], out, by="levle")


def test_prepared_rows_keep_the_places_that_prepare_found(tmp_path: Path) -> None:
    published = tmp_path / "published"
    published.mkdir()
    zipped(published / "images.zip", {"images/1.png": IMAGES[0]})
    (published / "2.png").write_bytes(IMAGES[1])
    write(published / "x.json", [with_image("images/1.png"), with_image("2.png")] * 2)
    prepared = prepare_sft([published], tmp_path / "prepared").files[0]

    merged = tmp_path / "elsewhere" / "all.jsonl"
    merge([prepared.parent], merged)

    assert merged.read_bytes() == prepared.read_bytes()
    assert check_sft_file(merged).problems == []


def test_the_first_row_of_json_lines_has_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(IMAGES[0])
    source = write(tmp_path / "x.json", [PLAIN] * 5 + [with_image("a.png")] * 2)
    merge([source], tmp_path / "out" / "all.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out" / "all.jsonl").open()]
    assert [len(row["images"]) for row in rows] == [1, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("amount", "reason"),
    [
        ("perception=x", "a number of rows such as 100"),
        ("1.5", "a share from 0.0 to 1.0"),
        ("-1", "expected SOURCE=AMOUNT"),
        ("search=3", "no source 'search'; there are perception, reason"),
        ("0", "no row is left for .*validation.parquet"),
    ],
)
def test_amounts_that_make_no_sense(
    amount: str, reason: str, rl_files: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        split([rl_files], tmp_path / "out", Amounts.parse([amount]))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_said(rl_files: Path, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.json", [PLAIN, with_image("gone.png")])
    for sources, output, reason in (
        ([rl_files, bad], "x.parquet", "cannot be combined"),
        ([rl_files], "x.jsonl", "must be a .parquet file"),
        ([bad], "x.jsonl", r"bad\.json, row 2: images: .*Run `deepeyes data prepare` first"),
        ([rl_files], "in/x.parquet", "must not change"),
    ):
        with pytest.raises(DataError, match=reason):
            merge(sources, tmp_path / output)


def test_an_interruption_is_said_to_leave_nothing(tmp_path: Path) -> None:
    """The source is a pipe, so that the signal comes in the middle for sure."""
    out = tmp_path / "out" / "all.jsonl"
    os.mkfifo(tmp_path / "x.json")
    command = [sys.executable, "-m", "deepeyes_plugins.cli", "data", "merge"]
    command += [str(tmp_path / "x.json"), "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with (tmp_path / "x.json").open("w") as pipe:
        pipe.write(json.dumps(PLAIN))
        pipe.flush()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "nothing was written, the same command restarts" in said
    assert not out.exists()


def test_the_commands(rl_files: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deepeyes_plugins.cli", "data"]
    out = tmp_path / "out"
    answer = subprocess.run(
        [*command, "split", str(rl_files), "-o", str(out), "--validation", "0.1", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["files"][str(out / "validation.parquet")]["reason"] == 4


def test_more_rows_than_there_are_is_told(rl_files: Path, tmp_path: Path) -> None:
    take = Amounts.parse(["perception=100", "reason=40"])
    combined = merge([rl_files], tmp_path / "out.parquet", take=take, drop_duplicates=True)
    assert combined.short == {"perception": (100, 60)}
    assert combined.files[tmp_path / "out.parquet"] == {"perception": 60, "reason": 40}

    command = [sys.executable, "-m", "deepeyes_plugins.cli", "data", "merge", str(rl_files)]
    said = subprocess.run(
        [*command, "-o", str(tmp_path / "b.parquet"), "--take", "reason=0.5", "--take", "99"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "99 rows of perception were requested, but only 80 exist" in said.stdout
    assert "reason were requested" not in said.stdout
