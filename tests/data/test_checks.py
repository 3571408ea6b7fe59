"""Data checks name the file, the row and the reason, and need the memory of a few rows."""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
import tracemalloc
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deepeyes_plugins.data import files
from deepeyes_plugins.data.check.images import ImageInfo, inspect_image
from deepeyes_plugins.data.check.rl import RowRules, check_rl_parquet
from deepeyes_plugins.data.check.sft import check_sft_file
from deepeyes_plugins.data.findings import DataError, Finding, Report
from deepeyes_plugins.data.prepare import prepare_sft

PLAIN = {
    "messages": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<think>Easy.</think>\n<answer>4</answer>"},
    ]
}


def image_bytes(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 40).save(buffer, kind)
    return buffer.getvalue()


def with_image(*images: str) -> dict[str, Any]:
    question = {"role": "user", "content": "<image>What is it?"}
    return {"messages": [question, PLAIN["messages"][1]], "images": list(images)}


def write(path: Path, rows: list[Any], *, lines: bool = False) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1))
    return path


def reasons(report: Report) -> list[tuple[int | None, str, str]]:
    return [(problem.row, problem.key, problem.reason) for problem in report.problems]


@pytest.mark.parametrize("lines", [False, True], ids=["array", "lines"])
def test_good_file(tmp_path: Path, lines: bool) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes())
    file = write(tmp_path / "x.json", [PLAIN, with_image("a.png")] * 50, lines=lines)

    report = check_sft_file(file)

    assert (report.rows, report.ok, report.problems) == (100, True, [])
    assert check_sft_file(file, limit=30).rows == 30
    report.raise_if_bad()


def test_bad_rows_are_named(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (media / "good.png").write_bytes(image_bytes())
    (media / "cut.png").write_bytes(image_bytes()[:-200])
    (media / "cut.jpg").write_bytes(image_bytes("JPEG")[:-200])
    (media / "text.png").write_bytes(b"<html>404</html>")
    rows = [with_image(f"{name}") for name in ("good.png", "cut.png", "cut.jpg", "text.png")]
    rows += [with_image("gone.png"), with_image("good.png", "good.png")]
    file = write(tmp_path / "x.json", [*rows, "no row"])

    report = check_sft_file(file, media)

    (cut_png, cut_jpeg, text, gone, count, no_row) = reasons(report)
    assert cut_png[:2] == (2, "images") and "cut.png" in cut_png[2]
    assert cut_jpeg[:2] == (3, "images") and "truncated" in cut_jpeg[2]
    assert text[:2] == (4, "images") and "not a readable image" in text[2]
    assert gone == (5, "images", f"image 1 (gone.png): there is no such file in {media}")
    assert count == (6, "", "1 <image> placeholders but 2 images")
    assert no_row == (7, "", "the row is a str, not an object")
    with pytest.raises(DataError) as raised:
        report.raise_if_bad(most=2)
    message = str(raised.value)
    assert f"{file}: 6 of 7 rows cannot be used" in message
    assert f"{file}, row 2: images: image 1 (" in message
    assert "and 4 more problems" in message


def test_doubts_are_warnings(tmp_path: Path) -> None:
    row = json.loads(json.dumps(PLAIN).replace("</think>", ""))

    report = check_sft_file(write(tmp_path / "x.json", [row]))

    assert report.ok
    assert [str(problem) for problem in report.warnings] == [
        f"{tmp_path / 'x.json'}, row 1: turn 2 (assistant) has 1 <think> and 0 </think>"
    ]


def test_files_that_cannot_be_read_on(tmp_path: Path) -> None:
    whole = json.dumps([PLAIN, PLAIN, PLAIN])
    contents = {
        "": (None, "the file has no rows"),
        "[]": (None, "the file has no rows"),
        whole[:-50]: (3, "not valid JSON, perhaps truncated"),
        whole[:-1]: (4, "not valid JSON, perhaps truncated"),
        whole.replace("}, {\"messages", "} {\"messages"): (None, "after row 1 a comma or ] is"),
        json.dumps(PLAIN) + "\n{": (2, "not valid JSON, perhaps truncated"),
    }  # fmt: skip
    for number, (text, (row, reason)) in enumerate(contents.items()):
        file = tmp_path / f"{number}.json"
        file.write_text(text)
        (problem,) = check_sft_file(file).problems
        assert (problem.row, problem.level) == (row, "error")
        assert reason in problem.reason
    (gone,) = check_sft_file(tmp_path / "gone.json").problems
    assert "gone.json: cannot be read: No such file" in str(gone)
    (tmp_path / "latin.json").write_bytes(b'["\xff"]')
    (latin,) = check_sft_file(tmp_path / "latin.json").problems
    assert "is not UTF-8" in latin.reason


def test_a_mark_of_the_byte_order_is_no_part_of_the_data(tmp_path: Path) -> None:
    """Hugging Face datasets reads JSON lines with one, but no array."""
    for lines in (False, True):
        file = write(tmp_path / "x.json", [PLAIN, PLAIN], lines=lines)
        file.write_bytes(BOM_UTF8 + file.read_bytes())
        report = check_sft_file(file)
        assert (report.rows, report.ok) == (2, lines)
        assert "byte order mark" in report.describe() or lines
        assert prepare_sft([file], tmp_path / "out").summary.written == 2


def test_what_is_not_utf8_is_said_with_the_row_ahead_of_it(tmp_path: Path) -> None:
    lines = [json.dumps(PLAIN).encode()] * 400
    lines[300] = lines[300].replace(b"Easy", b"Dif\xedcil")
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))

    *_, problem = check_sft_file(tmp_path / "x.jsonl").problems

    told = re.search(r"not UTF-8: byte 0xed after row (\d+)", problem.reason)
    assert told and 200 < int(told[1]) <= 300


def test_a_mistake_in_an_array_does_not_have_all_of_it_read(tmp_path: Path) -> None:
    text = json.dumps([PLAIN] * 3 + [{"messages": "x" * 100} for _ in range(250_000)])
    file = tmp_path / "x.json"
    file.write_text(text.replace('"role": "assistant",', '"role": "assistant"', 2)[:-1])
    tracemalloc.start()
    try:
        (problem,) = check_sft_file(file).problems
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert problem.row == 1
    assert "Expecting ',' delimiter in " in problem.reason and '"assistant" "content"' in str(
        problem
    )
    assert "truncated" not in problem.reason
    assert peak < len(text) / 3


def test_rows_nested_too_deep_for_a_reader(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    (tmp_path / "array.json").write_text(f"[{json.dumps(PLAIN)}, {deep}]")
    (tmp_path / "lines.jsonl").write_text(f"{json.dumps(PLAIN)}\n{deep}\n")
    for file in tmp_path.iterdir():
        (problem,) = check_sft_file(file).problems
        assert problem.row == 2 and "nested too deep" in problem.reason


def test_an_animation_that_ends_anywhere_is_no_more_than_a_bad_row() -> None:
    frames = [Image.effect_noise((5, 4), 50) for _ in range(2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    data = buffer.getvalue()

    seen = [inspect_image(1, data[:end]) for end in range(len(data) + 1)]

    assert isinstance(seen[0], Finding) and isinstance(seen[-1], ImageInfo)
    assert seen[-1].animated


def test_images_that_come_too_late_in_json_lines(tmp_path: Path) -> None:
    """Hugging Face datasets would fail to cast the column, naming no row."""
    (tmp_path / "a.png").write_bytes(image_bytes())
    long = json.loads(json.dumps(PLAIN).replace("Easy.", "Easy. " * 200_000))
    rows = [*[long] * 10, with_image("a.png"), with_image("a.png")]

    late = check_sft_file(write(tmp_path / "late.jsonl", rows, lines=True))
    early = check_sft_file(write(tmp_path / "early.jsonl", rows[::-1], lines=True))
    array = check_sft_file(write(tmp_path / "array.json", rows))

    assert reasons(late)[0][:2] == (11, "images")
    assert "first 10 MiB" in late.problems[0].reason
    assert early.ok and array.ok


@settings(deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(), st.text() | st.lists(st.integers())), max_size=8),
    piece=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
)
def test_an_array_is_read_the_same_in_pieces_of_any_size(
    rows: list[Any], piece: int, indent: int | None
) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(files, "_CHARACTERS_AT_A_TIME", piece)
        file = Path(folder) / "x.json"
        file.write_text("\n " + json.dumps(rows, indent=indent), encoding="utf-8")
        assert [row.value for row in files.json_rows(file)] == rows


def rl_row(**columns: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": "<image>What?"}],
        "images": [{"bytes": image_bytes(), "path": None}],
        "data_source": "reason",
        "env_name": "deepeyes_v2",
        "reward_model": {"ground_truth": "A", "style": "rule"},
        "extra_info": {"index": "1", "answer": "A"},
        **columns,
    }


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    return path


def test_good_parquet_of_several_row_groups(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", [rl_row() for _ in range(12)])

    report = check_rl_parquet(file)

    assert (report.rows, report.problems) == (12, [])
    assert check_rl_parquet(file, limit=7).rows == 7


def test_a_large_row_group_is_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    """What benchmarks/rl_data.py does with 2 GiB: whoever reads it whole would hold all of it."""
    megabytes = 64
    rows = [{"images": [{"bytes": os.urandom(1 << 19)}]} for _ in range(2 * megabytes)]
    # A page is the least that can be read, and pyarrow would make one of 1,024 rows.
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", write_batch_size=8)
    before, held = pa.total_allocated_bytes(), []

    with files.open_parquet(tmp_path / "x.parquet") as file:
        assert file.num_row_groups == 1
        for batch in files.row_batches(file, None):
            held.append((pa.total_allocated_bytes() - before) >> 20)
            del batch

    assert max(held) < megabytes / 2, held


def test_bad_parquet_rows_are_named(tmp_path: Path) -> None:
    no_image = {"bytes": None, "path": None}
    file = write_parquet(
        tmp_path / "x.parquet",
        [
            rl_row(),
            rl_row(images=[{"bytes": image_bytes()[:-200], "path": None}]),
            rl_row(images=[no_image]),
            rl_row(images=[]),
            rl_row(env_name="deepeyes_v3"),
            rl_row(env_name="code_toolbox_lingyi_v1"),
            rl_row(reward_model={"ground_truth": "", "style": "rule"}, data_source=None),
        ],
    )

    report = check_rl_parquet(file)

    assert report.rows == 7
    found = {(problem.row, problem.key): problem for problem in report.problems}
    assert list(found) == [
        (2, "images"),
        (3, "images"),
        (4, "prompt"),
        (5, "env_name"),
        (6, "env_name"),
        (7, "data_source"),
        (7, "reward_model"),
    ]
    assert "truncated" in found[2, "images"].reason
    assert "without bytes or path" in found[3, "images"].reason
    assert "more <image> placeholders" in found[4, "prompt"].reason
    assert "Did you mean 'deepeyes_v2'?" in found[5, "env_name"].reason
    assert found[6, "env_name"].level == "warning"
    assert report.bad_rows == 5


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ({"env_name": ["deepeyes_v2"]}, "env_name"),
        ({"images": [{"bytes": None, "path": "a\0.png"}]}, "images"),
    ],
)
def test_a_value_of_an_odd_kind_is_named(columns: dict[str, Any], key: str, tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", [rl_row(**columns), rl_row(**columns)])

    assert [(one.row, one.key) for one in check_rl_parquet(file).errors] == [(1, key), (2, key)]


def test_text_that_is_not_utf8_in_parquet(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([rl_row()])
    broken = pa.array([b"\xff"]).view(pa.string())
    at = table.schema.get_field_index("data_source")
    pq.write_table(table.set_column(at, "data_source", broken), tmp_path / "x.parquet")

    (problem,) = check_rl_parquet(tmp_path / "x.parquet").problems

    assert "cannot be read as parquet" in problem.reason and "utf-8" in problem.reason


def test_parquet_without_env_name_uses_the_default(tmp_path: Path) -> None:
    row = rl_row()
    del row["env_name"]
    file = write_parquet(tmp_path / "x.parquet", [row])

    assert check_rl_parquet(file).ok
    assert not check_rl_parquet(file, RowRules(environment="unheard_of")).ok


def test_a_data_source_needs_a_reward(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", [rl_row(data_source="geometry3k")])

    (problem,) = check_rl_parquet(file).problems

    assert problem.key == "data_source" and "rewards.sources in agent.yaml" in problem.reason
    assert check_rl_parquet(file, RowRules(sources={"geometry3k": "reason"})).ok


def test_image_paths_stay_in_the_folder_of_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for place in (tmp_path / "secret.png", folder / "images/a.png"):
        place.write_bytes(image_bytes())
    names = ["images/a.png", f"file://{folder}/images/a.png", "../secret.png", "images/../a.png"]
    names += [str(tmp_path / "secret.png"), "images/gone.png"]
    rows = [rl_row(images=[{"bytes": None, "path": name}]) for name in names]

    report = check_rl_parquet(write_parquet(folder / "x.parquet", rows))

    assert [problem.row for problem in report.errors] == [3, 4, 5, 6]
    assert all(f"is outside {folder}" in problem.reason for problem in report.errors[:3])
    outside = RowRules(media_root=tmp_path)
    assert check_rl_parquet(folder / "x.parquet", outside, limit=2).bad_rows == 1


def test_an_image_that_no_processor_takes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (2010, 10)).save(buffer, "PNG")
    file = write_parquet(tmp_path / "x.parquet", [rl_row(images=[{"bytes": buffer.getvalue()}])])

    (problem,) = check_rl_parquet(file).problems

    assert "image 1: 2010 x 10 pixels, an aspect ratio over 200" in problem.reason


def test_parquet_that_cannot_be_used_at_all(tmp_path: Path) -> None:
    good = write_parquet(tmp_path / "good.parquet", [rl_row()]).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(good[:-100])
    pq.write_table(pa.table({"question": ["a"]}), tmp_path / "other.parquet")

    (cut,) = check_rl_parquet(tmp_path / "cut.parquet").problems
    (gone,) = check_rl_parquet(tmp_path / "gone.parquet").problems
    other = check_rl_parquet(tmp_path / "other.parquet").problems

    assert "cannot be read as parquet, perhaps truncated" in str(cut)
    assert str(gone).endswith("gone.parquet: there is no such file")
    assert other[0].reason == "the column 'prompt' is missing; the file's columns: question"
    assert [(problem.row, problem.key) for problem in other] == [
        (None, "prompt"),
        (None, "data_source"),
        (None, "reward_model"),
    ]
