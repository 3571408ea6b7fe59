"""Published data become what the recipes read, and every change is told."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deepeyes_plugins import hookimpl, plugins
from deepeyes_plugins.data.check.rl import check_rl_parquet
from deepeyes_plugins.data.check.row import CheckRules
from deepeyes_plugins.data.check.scan import Source, scan
from deepeyes_plugins.data.check.sft import check_sft_file
from deepeyes_plugins.data.combine import merge
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.media import read_media
from deepeyes_plugins.data.prepare import prepare_rl, prepare_sft
from deepeyes_plugins.quickstart.datasets import write_rl
from deepeyes_plugins.quickstart.task import split_examples
from deepeyes_plugins.rewards.hooks import rewards
from deepeyes_plugins.search.image_cache import ImageCache
from tests.data.test_checks import PLAIN, image_bytes, with_image, write
from tests.data.test_media import zipped
from tests.full_disk import full_disk

PREPARE = (sys.executable, "-m", "deepeyes_plugins.cli", "data", "prepare")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder as it is published: parts of JSON, beside them a zip file of images."""
    folder = tmp_path / "published"
    folder.mkdir()
    zipped(folder / "images.zip", {"images/1.png": image_bytes(), "images/2.png": image_bytes()})
    write(folder / "sft_part_0.json", [PLAIN, PLAIN])
    rows = [PLAIN | {"images": None}, with_image("images/1.png"), with_image("images/2.png")]
    write(folder / "sft_part_1.json", rows)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_parts_become_one_data_set_whose_images_stay_in_their_zip_file(
    source: Path, tmp_path: Path
) -> None:
    before = contents(source)

    prepared = prepare_sft([source], tmp_path / "out")

    (file,) = prepared.files
    rows = lines(file)
    assert check_sft_file(file).problems == []
    assert [len(row["images"]) for row in rows] == [1, 0, 0, 0, 1]
    assert rows[0]["images"] == [f"zip://images/1.png::{source / 'images.zip'}"]
    assert read_media(rows[4]["images"][0]) == ZipFile(source / "images.zip").read("images/2.png")
    assert all(row.keys() == {"messages", "images"} for row in rows)
    entry = json.loads((tmp_path / "out" / "dataset_info.json").read_text())["deepeyes_v2_sft"]
    assert (entry["file_name"], entry["formatting"]) == (file.name, "deepeyes")
    assert contents(source) == before


def test_what_was_prepared_can_be_prepared_again(source: Path, tmp_path: Path) -> None:
    """In particular the report beside the data is not taken for data."""
    prepare_sft([source], tmp_path / "out")
    again = prepare_sft([tmp_path / "out"], tmp_path / "again", media=[source])
    assert (again.summary.written, again.summary.changes) == (5, {})


def test_every_change_is_told(source: Path, tmp_path: Path) -> None:
    prepared = prepare_sft([source], tmp_path / "out")

    changes = [
        (Path(one["file"]).name, one["row"], one["key"], one["before"], one["after"])
        for one in lines(prepared.report)
    ]
    address = f"zip://images/1.png::{source / 'images.zip'}"
    assert ("sft_part_0.json", 1, "images", None, []) in changes
    assert ("sft_part_1.json", 2, "images", ["images/1.png"], [address]) in changes
    assert prepared.summary.changes["images: no images are an empty list"] == 3
    assert len(changes) == 5


ANSWER = "<think>Two and two.</think>\n<answer>4</answer>"
REPAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "roles of ShareGPT": (
        {
            "conversations": [
                {"from": "human", "value": "2 + 2?"},
                {"from": "gpt", "value": ANSWER},
            ]
        },
        {},
    ),
    "a column for the system prompt": (
        {"system": "Think."},
        {"messages": [{"role": "system", "content": "Think."}, *PLAIN["messages"]]},
    ),
    "content of parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "It?"}]},
                PLAIN["messages"][1],
            ],
            "images": [{"path": "a.png"}],
        },
        {"images": ["a.png"], "messages": ["<image>It?", PLAIN["messages"][1]["content"]]},
    ),
    "one image without a list": (with_image() | {"images": "a.png"}, {"images": ["a.png"]}),
    "an entry without an image": (with_image("", "a.png"), {"images": ["a.png"]}),
    "a path of another machine": (
        with_image("/mnt/their/data/published/a.png"),
        {"images": ["a.png"]},
    ),
    "thinking that was opened by the prompt": (
        {"messages": [PLAIN["messages"][0], {"role": "assistant", "content": ANSWER[7:]}]},
        {"messages": ["2 + 2?", ANSWER]},
    ),
    "a column that only some rows have": ({"id": 7}, {}),
}


@pytest.mark.parametrize("name", REPAIRS)
def test_what_can_be_told_for_sure_is_repaired(name: str, tmp_path: Path) -> None:
    spoilt, expected = REPAIRS[name]
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "a.png").write_bytes(image_bytes())
    row = spoilt if {"messages", "conversations"} & spoilt.keys() else PLAIN | spoilt
    write(folder / "x.json", [row])

    prepared = prepare_sft([folder], tmp_path / "out")

    (repaired,) = lines(prepared.files[0])
    assert check_sft_file(prepared.files[0]).problems == []
    assert repaired.keys() == {"messages", "images"}
    assert repaired["images"] == [str(folder / one) for one in expected.get("images", [])]
    for turn, wanted in zip(repaired["messages"], expected.get("messages", ()), strict=False):
        assert turn == wanted or turn["content"] == wanted
    assert prepared.summary.changes


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "a text": ("hello", "the row is a str, not an object"),
    "no answer": ({"messages": PLAIN["messages"][:1]}, "the last turn is a user turn"),
    "an image that is nowhere": (with_image("gone.png"), r"gone\.png\): there is no such file"),
    "an image that is none": (with_image("text.png"), "not a readable image"),
    "a way out by ..": (with_image("../secret.png"), r"a path with \.\. in it"),
    "a way out by a link": (
        with_image("link.png"),
        "link leads to .*secret.png, outside",
    ),
    "an absolute path": (with_image("/etc/hostname"), "there is no such file"),
    "a way out of a zip file": (with_image("zip://a::/etc/x.zip"), "not among the media paths"),
    "no thinking": (
        {"messages": [PLAIN["messages"][0], {"role": "assistant", "content": "4"}]},
        "does not begin with <think>",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_cannot_be_repaired_is_left_out_and_named(name: str, tmp_path: Path) -> None:
    row, reason = BAD_ROWS[name]
    folder = tmp_path / "published"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(image_bytes())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "text.png").write_bytes(b"<html>404</html>")
    write(folder / "x.json", [PLAIN, row])

    prepared = prepare_sft([folder], tmp_path / "out")

    assert len(lines(prepared.files[0])) == prepared.summary.written == 1
    (left_out,) = [one for one in lines(prepared.report) if one["action"] == "left out"]
    assert (left_out["file"], left_out["row"]) == (str(folder / "x.json"), 2)
    assert re.search(reason, left_out["reason"])


def test_bad_rows_can_be_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "x.json", [PLAIN, {"messages": PLAIN["messages"][:1]}, 7])

    prepared = prepare_sft([source], tmp_path / "out", keep_bad=True)

    assert [len(row["messages"]) for row in lines(prepared.files[0])] == [2, 1]
    assert prepared.summary.bad == 2


@given(
    rows=st.lists(
        st.recursive(
            st.none()
            | st.booleans()
            | st.floats()
            | st.text(st.characters())  # With half characters, as JSON can hold them.
            | st.sampled_from(["<image>", "a"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["messages", "images", "role", "content", "from", "value", "\ud800"]
                    ),
                    inner,
                )
            ),
            max_leaves=8,
        ),
        max_size=4,
    ),
    odd=st.none(),
)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(rows=[PLAIN | {"\ud800": 1, "source": "\ud800"}], odd=0)
@example(rows=[PLAIN | {"images": [{"path": "\ud800", "\ud800": float("nan")}]}], odd=1)
@example(rows=[with_image("\ud800.png")], odd=1)
@example(rows=[with_image("x" * 100_000)], odd=1)
@example(rows=[with_image(5)], odd=1)  # type: ignore[arg-type]
@example(rows=[with_image("zip://a::\0")], odd=1)
def test_no_row_is_so_odd_that_the_run_ends(
    rows: list[Any], odd: int | None, tmp_path: Path
) -> None:
    source = tmp_path / "x.json"
    source.write_text(json.dumps([PLAIN, *rows]))

    prepared = prepare_sft([source], tmp_path / "out", columns=["source"], decode=False)
    (result,) = scan([Source(source, "sft")], CheckRules(), tmp_path / "state")

    assert prepared.summary.rows == result.counts.rows == len(rows) + 1
    assert check_sft_file(prepared.files[0]).ok
    assert "\\ud800" not in prepared.files[0].read_text()
    assert not re.search(r"\b(NaN|Infinity)\b", prepared.report.read_text())
    assert odd is None or prepared.summary.bad == odd
    if not prepared.summary.bad:
        merge([source], tmp_path / "merged" / "x.jsonl")
        return
    with pytest.raises(DataError, match="row"):
        merge([source], tmp_path / "merged" / "x.jsonl")


def broken(folder: Path) -> dict[str, tuple[list[Path], str]]:
    """Sources that cannot be read, each with what is said about it."""
    whole = json.dumps([PLAIN] * 3)
    for name, data in {
        "cut.json": whole[:-50].encode(),
        "latin.json": b'[{"messages": "\xff"}]',
        "cut.parquet": b"PAR1 and then nothing",
        "table.json": b'{"rows":\n[]}',
        "zips/cut.zip": zipped(folder / "good.zip", {"1.png": image_bytes()}).read_bytes()[:-30],
        "empty.json": b"[]",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    good = write(folder / "good.json", [PLAIN])
    return {
        "cut JSON": ([folder / "cut.json"], r"cut\.json, row 3: not valid JSON, perhaps truncated"),
        "not UTF-8": ([folder / "latin.json"], r"latin\.json: is not UTF-8"),
        "a table": ([folder / "table.json"], r"table\.json, row 1: not valid JSON"),
        "a cut zip": (
            [good, folder / "zips" / "cut.zip"],
            r"cut\.zip cannot be read as a zip file",
        ),
        "no rows": ([folder / "empty.json"], "none of 0 rows can be used"),
        "no file": ([folder / "gone.json"], r"gone\.json: there is no such file"),
        "another kind": ([folder / "cut.parquet"], "neither a folder nor a JSON file"),
        "an empty folder": ([folder / "none"], "there is no JSON file in"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "cut JSON",
        "not UTF-8",
        "a table",
        "a cut zip",
        "no rows",
        "no file",
        "another kind",
        "an empty folder",
    ],
)
def test_a_source_that_cannot_be_read_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    sources, reason = broken(tmp_path)[name]

    with pytest.raises(DataError, match=reason):
        prepare_sft(sources, tmp_path / "out")

    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_a_media_folder_that_is_missing_is_an_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere, the media root, is neither"):
        prepare_sft([source], tmp_path / "out", media=[tmp_path / "nowhere"])


@pytest.mark.parametrize("as_lines", [False, True], ids=["array", "lines"])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_arrays_and_lines_are_told_by_what_is_in_the_file(
    suffix: str, as_lines: bool, tmp_path: Path
) -> None:
    source = write(tmp_path / f"x.{suffix}", [PLAIN] * 3, lines=as_lines)
    assert prepare_sft([source], tmp_path / "out").summary.written == 3


def test_a_zip_file_with_names_that_lead_out_of_it_harms_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    zipped(folder / "more.zip", {"../../evil.png": image_bytes(), "fine.png": image_bytes()})
    write(folder / "x.json", [with_image("fine.png"), with_image("../../evil.png")])

    prepared = prepare_sft([folder], tmp_path / "out")

    assert prepared.summary.written == 1
    assert ".. in it" in prepared.summary.faults[0]
    assert not list(tmp_path.rglob("evil.png"))


def test_nothing_is_written_where_the_source_is(source: Path, tmp_path: Path) -> None:
    before = contents(source)
    for output in (source, source / "out"):
        with pytest.raises(DataError, match="which must not change"):
            prepare_sft([source], output)
    own = write(tmp_path / "deepeyes_v2_sft.jsonl", [PLAIN], lines=True)
    with pytest.raises(DataError, match="must not change"):
        prepare_sft([own], tmp_path)
    assert contents(source) == before


def test_finished_parts_are_not_done_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    part = source / "sft_part_1.json"
    good = part.read_bytes()
    part.write_bytes(good[:-20])
    with pytest.raises(DataError, match="truncated"):
        prepare_sft([source], out)
    part.write_bytes(good)

    resumed = prepare_sft([source], out)
    again = prepare_sft([source], out)

    assert (resumed.parts, resumed.found) == (2, 1)
    assert (again.found, again.summary) == (2, resumed.summary)
    fresh = prepare_sft([source], tmp_path / "fresh")
    assert fresh.files[0].read_bytes() == resumed.files[0].read_bytes()
    assert fresh.report.read_bytes() == resumed.report.read_bytes()
    part.write_text(json.dumps([PLAIN]))
    assert prepare_sft([source], out).summary.written == 3


def test_no_space_left_is_told_and_what_was_finished_is_kept(tmp_path: Path) -> None:
    small = write(tmp_path / "0.json", [PLAIN])
    large = write(tmp_path / "1.json", [PLAIN] * 1000)
    out = tmp_path / "out"

    with full_disk(out, 64 << 10):
        with pytest.raises(DataError, match=r"1\.\w+ cannot be written: .*free space"):
            prepare_sft([small, large], out)
        assert not [path for path in out.rglob("*") if "partial" in path.name]
        assert [path.name for path in out.rglob("0.*")]

    resumed = prepare_sft([small, large], out)
    assert (resumed.found, resumed.summary.written) == (1, 1001)


def test_no_space_left_for_parquet(rl_rows: list[dict[str, Any]], tmp_path: Path) -> None:
    source, out = write_parquet(tmp_path / "in" / "x.parquet", rl_rows * 30), tmp_path / "out"

    with full_disk(out, 16 << 10):
        with pytest.raises(DataError, match=r"x\.parquet cannot be written: .*free space"):
            prepare_rl([source], out)
        assert not list(out.glob("*.parquet"))


@pytest.mark.parametrize("part", [0, 1])
def test_ctrl_c_keeps_finished_parts(part: int, tmp_path: Path) -> None:
    """The source is a pipe, so that the signal comes in the middle of a part for sure."""
    folder, out = tmp_path / "published", tmp_path / "out"
    folder.mkdir()
    for number in range(2):
        write(folder / f"{number}.json", [PLAIN] * 40, lines=True)
    rows = (folder / f"{part}.json").read_bytes()
    (folder / f"{part}.json").unlink()
    os.mkfifo(folder / f"{part}.json")
    process = subprocess.Popen(
        [*PREPARE, "sft", str(folder), "-o", str(out)], stderr=subprocess.PIPE, text=True
    )
    with (folder / f"{part}.json").open("wb") as pipe:
        pipe.write(rows[: len(rows) // 2])
        pipe.flush()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "the same command resumes after" in said
    assert not list(out.glob("*.jsonl"))
    assert not [path for path in out.rglob("*") if "partial" in path.name]
    (folder / f"{part}.json").unlink()
    (folder / f"{part}.json").write_bytes(rows)
    resumed = prepare_sft([folder], out)
    assert (resumed.found, resumed.summary.written) == (part, 80)


@pytest.fixture
def rl_rows(tmp_path: Path) -> list[dict[str, Any]]:
    write_rl(split_examples("train", 3), tmp_path / "seed.parquet", "train")
    return list(pq.read_table(tmp_path / "seed.parquet").to_pylist())


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def spoilt(row: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return copy.deepcopy(row) | columns


def test_rl_files_are_repaired_into_one_schema(
    rl_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    first, second, third = rl_rows
    folder = tmp_path / "published"
    stale = spoilt(first, env_name="code_toolbox_lingyi_v1", images=first["images"][0]["bytes"])
    stale["reward_model"] = {"ground_truth": 4.0}
    stale["extra_info"] = {"index": 5, "answer": "4", "more": [1, 2]}
    write_parquet(folder / "a.parquet", [stale])
    nested = spoilt(second, prompt=json.dumps(second["prompt"]), extra_info='{"index": "x"}')
    del nested["env_name"]
    write_parquet(folder / "b.parquet", [nested])
    (folder / "p.png").write_bytes(third["images"][0]["bytes"])
    by_path = spoilt(third, images=[{"bytes": None, "path": "p.png"}], reward_model=None)
    write_parquet(folder / "c.parquet", [by_path])
    text = spoilt(third, prompt=[{"role": "user", "content": "2 + 2?"}], images=None)
    write_parquet(folder / "d.parquet", [text])

    prepared = prepare_rl([folder], tmp_path / "out")

    assert prepared.summary.faults == []
    assert len({str(pq.read_schema(file)) for file in prepared.files}) == 1
    assert all(check_rl_parquet(file).problems == [] for file in prepared.files)
    rows = [row for file in prepared.files for row in pq.read_table(file).to_pylist()]
    assert [row["env_name"] for row in rows] == ["deepeyes_v2"] * 4
    assert [len(row["images"]) for row in rows] == [1, 1, 1, 0]
    assert rows[2]["images"][0]["bytes"] == third["images"][0]["bytes"]
    assert rows[0]["reward_model"]["ground_truth"] == "4.0"
    assert rows[2]["reward_model"]["ground_truth"] == third["extra_info"]["answer"]
    assert rows[0]["extra_info"]["index"] == "5"
    assert rows[1]["prompt"] == second["prompt"]
    told = {(Path(one["file"]).name, one["key"]) for one in lines(prepared.report)}
    assert {("a.parquet", "env_name"), ("b.parquet", "prompt"), ("c.parquet", "images")} <= told


def test_rl_rows_that_cannot_be_repaired_are_left_out(
    rl_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    bad = spoilt(rl_rows[1], images=[{"bytes": b"rubbish", "path": None}])
    source = write_parquet(tmp_path / "in" / "x.parquet", [rl_rows[0], bad, rl_rows[2]])

    prepared = prepare_rl([source], tmp_path / "out")

    written = pq.read_table(prepared.files[0]).to_pylist()
    assert [row["images"] for row in written] == [rl_rows[0]["images"], rl_rows[2]["images"]]
    assert (prepared.summary.written, prepared.summary.bad) == (2, 1)
    assert f"{source}, row 2: images: image 1" in prepared.summary.faults[0]
    again = prepare_rl([source], tmp_path / "out")
    assert (again.found, again.summary) == (1, prepared.summary)
    kept = prepare_rl([source], tmp_path / "out", keep_bad=True)
    assert (kept.found, kept.summary.written) == (0, 3)


@pytest.mark.parametrize("key", ["bytes", "path"])
def test_rl_rows_cannot_name_images_outside_of_the_source(
    key: str, rl_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(rl_rows[0]["images"][0]["bytes"])
    names = [str(tmp_path / "secret.png"), "../secret.png"]
    rows = [spoilt(rl_rows[0], images=[{key: name}]) for name in names]
    good = spoilt(rl_rows[1], images=[])
    good["prompt"] = [{"role": "user", "content": "2 + 2?"}]
    source = write_parquet(tmp_path / "in" / "x.parquet", [*rows, good])

    prepared = prepare_rl([source], tmp_path / "out")

    assert (prepared.summary.bad, prepared.summary.written) == (2, 1)


def test_a_cut_parquet_file_does_not_undo_the_others(
    rl_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    good = write_parquet(tmp_path / "in" / "a.parquet", rl_rows)
    cut = write_parquet(tmp_path / "in" / "b.parquet", rl_rows)
    data = bytearray(cut.read_bytes())
    data[4:200] = bytes(196)
    cut.write_bytes(data)

    with pytest.raises(DataError, match=r"b\.parquet: cannot be read as parquet"):
        prepare_rl([good, cut], tmp_path / "out")

    write_parquet(cut, rl_rows)
    assert prepare_rl([good, cut], tmp_path / "out").found == 1


def test_a_ground_truth_that_is_nan_is_none(rl_rows: list[dict[str, Any]], tmp_path: Path) -> None:
    nan = {"ground_truth": float("nan"), "style": "rule"}
    known = spoilt(rl_rows[0], reward_model=nan, extra_info={"index": 1.0, "answer": "B"})
    unknown = spoilt(rl_rows[1], reward_model=nan, extra_info={"index": float("nan")})
    write_parquet(tmp_path / "in/a.parquet", [known, unknown])

    prepared = prepare_rl([tmp_path / "in"], tmp_path / "out")

    assert (prepared.summary.bad, prepared.summary.written) == (1, 1)
    assert "no ground truth in 'reward_model'" in prepared.summary.faults[0]
    [row] = pq.read_table(prepared.files[0]).to_pylist()
    assert row["reward_model"]["ground_truth"] == "B"


def test_a_ground_truth_of_several_values_is_not_made_into_a_text(
    rl_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    several = spoilt(rl_rows[0], reward_model={"ground_truth": ["A", "B"], "style": "rule"})
    folder = tmp_path / "in"
    write_parquet(folder / "a.parquet", [several])
    write_parquet(folder / "b.parquet", rl_rows)

    prepared = prepare_rl([folder], tmp_path / "out")

    assert (prepared.summary.bad, prepared.summary.written) == (1, 3)
    assert "the ground truth is a list, not a string" in prepared.summary.faults[0]


def test_a_reward_that_was_installed_since_is_known(
    rl_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = [rl_rows[0], spoilt(rl_rows[1], data_source="ours")]
    source = write_parquet(tmp_path / "in" / "x.parquet", rows)
    assert prepare_rl([source], tmp_path / "out").summary.written == 1

    class OurReward:
        @hookimpl
        def register_rewards(self, register: Callable[[str, Any], None]) -> None:
            register("ours", object())

    plugin = OurReward()
    plugins.manager().register(plugin, "our-reward")
    rewards.cache_clear()
    try:
        assert prepare_rl([source], tmp_path / "out").summary.written == 2
    finally:
        plugins.manager().unregister(plugin)
        rewards.cache_clear()


def test_both_kinds_may_share_a_folder(
    source: Path, rl_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The work of one is not tidied away by the other."""
    rl_source, out = write_parquet(tmp_path / "in" / "x.parquet", rl_rows), tmp_path / "out"
    report = prepare_rl([rl_source], out).report.read_bytes()
    prepare_sft([source], out)

    again = prepare_rl([rl_source], out)

    assert (again.found, again.report.read_bytes()) == (1, report)


def test_all_files_that_were_cut_short_are_named_at_once(
    rl_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    sources = [write_parquet(tmp_path / "in" / f"{name}.parquet", rl_rows) for name in "abc"]
    for path in sources[1:]:
        path.write_bytes(path.read_bytes()[:-40])

    with pytest.raises(DataError, match=r"(?s)b\.parquet: cannot .*c\.parquet: cannot be read"):
        prepare_rl(sources, tmp_path / "out")


def test_a_folder_of_parquet_parts_is_none_of_the_files(
    rl_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "in" / "table.parquet").mkdir(parents=True)
    write_parquet(tmp_path / "in" / "table.parquet" / "part-0.parquet", rl_rows)
    assert prepare_rl([tmp_path / "in"], tmp_path / "out").summary.written == 3


def test_a_name_that_leads_elsewhere_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'\.\./x' must be a file name"):
        prepare_sft([source], tmp_path / "out", name="../x")


def test_row_groups_are_small_whatever_the_source_had(tmp_path: Path) -> None:
    """A row group that is larger than memory comes out as many; here the limit is what counts."""
    image = image_bytes()
    rows = [
        {
            "prompt": [{"role": "user", "content": f"<image>{number}?"}],
            "images": [{"bytes": image + bytes(3 << 20), "path": None}],
            "data_source": "perception",
            "reward_model": {"ground_truth": "4", "style": "rule"},
        }
        for number in range(48)
    ]
    source = write_parquet(tmp_path / "in" / "x.parquet", rows)

    prepared = prepare_rl([source], tmp_path / "out")

    metadata = pq.ParquetFile(prepared.files[0]).metadata
    assert metadata.num_rows == 48
    assert metadata.num_row_groups > 1
    assert max(metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)) <= 32


def test_the_command_reports_for_people_and_machines(source: Path, tmp_path: Path) -> None:
    write(source / "sft_part_2.json", [{"messages": []}])

    answer = subprocess.run(
        [*PREPARE, "sft", str(source), "-o", str(tmp_path / "out"), "--json", "--strict"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    facts = json.loads(answer.stdout)
    assert answer.returncode == 1
    assert (facts["rows"], facts["written"], facts["bad"]) == (6, 5, 1)
    assert "sft_part_2.json, row 1" in facts["faults"][0]


def test_a_search_cache_is_made_of_a_folder_with_a_zip_file(tmp_path: Path) -> None:
    folder, out = tmp_path / "published", tmp_path / "cache.sqlite"
    folder.mkdir()
    zipped(folder / "images.zip", {"images/a.png": image_bytes()})
    entry = {
        "tool_returned_web_title": ["A", "B", "C", "D"],
        "cached_images_path": ["images/a.png", None, "gone.png", "../a.png"],
    }
    (folder / "cache.json").write_text(json.dumps({"q1": entry}))
    before = contents(folder)

    answer = subprocess.run(
        [*PREPARE, "search-cache", str(folder), "-o", str(out), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout)
    assert (facts["answers"], facts["thumbnails"], facts["null"], facts["missing"]) == (1, 1, 1, 2)
    assert ImageCache(out).counts()["answers"] == 1
    reasons = [one["reason"] for one in lines(Path(facts["report"]))]
    assert "gone.png: there is no such file" in reasons[0] and ".. in it" in reasons[1]
    assert contents(folder) == before
