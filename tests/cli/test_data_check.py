"""``deepeyes data check`` and ``stats`` as people and CI meet them, with their exit statuses."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from typer.testing import CliRunner, Result

from deepeyes_plugins.cli.main import app
from deepeyes_plugins.data.check import checkpoints
from deepeyes_plugins.quickstart.tiny_model import make_tiny_qwen2_5_vl
from tests.data.test_media import zipped
from tests.full_disk import full_disk

SFT_ROW = {
    "messages": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<think>Easy.</think>\n<answer>4</answer>"},
    ]
}


def picture(mode: str = "RGB", kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (40, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def rl_row(question: str, image: bytes | None = None) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": ("<image>" if image else "") + question}],
        "images": [{"bytes": image}] if image else [],
        "data_source": "reason",
        "env_name": "deepeyes_v2",
        "reward_model": {"ground_truth": "A"},
    }


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    images = pa.list_(pa.struct({"bytes": pa.binary()}))
    table = pa.Table.from_pylist(rows)
    at = table.schema.get_field_index("images")
    table = table.set_column(at, "images", pa.array([row["images"] for row in rows], images))
    pq.write_table(table, path, row_group_size=100)
    return path


def sft_row(image: str) -> dict[str, Any]:
    turn = {"role": "user", "content": f"<image>What does {image} show?"}
    return {"messages": [turn, SFT_ROW["messages"][1]], "images": [image]}


def run(*arguments: object, state: Path) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments), "--state", str(state)])


def facts(result: Result) -> list[dict[str, Any]]:
    return json.loads(result.stdout)


def test_exit_statuses(tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text(json.dumps([SFT_ROW]))
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([SFT_ROW, {"messages": []}]))
    (tmp_path / "latin.json").write_bytes(b'["\xff"]')
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    lines = tmp_path / "lines.json"
    lines.write_text(json.dumps(SFT_ROW) + "\n")
    state = tmp_path / "state"

    assert run("check", good, state=state).exit_code == 0
    assert run("check", lines, state=state).exit_code == 0
    assert run("check", bad, state=state).exit_code == 1
    assert run("check", tmp_path / "latin.json", state=state).exit_code == 1
    assert run("check", tmp_path / "gone.json", state=state).exit_code == 2
    assert run("check", good, "--media-root", tmp_path / "gone", state=state).exit_code == 2
    assert run("check", good, "--media-root", tmp_path / "cut.zip", state=state).exit_code == 2
    assert run("check", tmp_path / "cut.zip", state=state).exit_code == 2
    assert not list(state.iterdir())


def test_unusual_images_are_warnings_that_say_what_training_sees(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    images = [
        picture("CMYK", "JPEG"),
        picture("P"),
        picture("I;16"),
        picture(kind="GIF", save_all=True, append_images=frames),
        picture(kind="JPEG", exif=turned),
    ]
    file = parquet(tmp_path / "x.parquet", [rl_row(str(at), one) for at, one in enumerate(images)])

    result = run("check", file, "--json", state=tmp_path / "state")

    (found,) = facts(result)
    assert result.exit_code == 0
    rows = {entry["examples"][0]["row"]: entry["kind"] for entry in found["problems"]}
    assert sorted(rows) == [1, 3, 4, 5]
    assert (
        "CMYK" in rows[1]
        and "16-bit channels, scaled to 8-bit" in rows[3]
        and "first frame" in rows[4]
    )
    assert "see it upright" in rows[5]
    assert found["statistics"]["heights"]["maximum"] == 40


def test_bombs_and_broken_images_are_errors(tmp_path: Path) -> None:
    bomb = bytearray(picture())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    rows = [rl_row("a", bytes(bomb)), rl_row("b", picture(kind="JPEG")[:-90]), rl_row("c")]

    result = run("check", parquet(tmp_path / "x.parquet", rows), "--json", state=tmp_path / "state")

    (found,) = facts(result)
    assert (result.exit_code, found["rows"], found["bad_rows"]) == (1, 3, 2)


def test_files_that_are_no_images_are_one_kind_of_problem(tmp_path: Path) -> None:
    rows = [rl_row(str(length), b"<html>" * length) for length in range(1, 40)]

    result = run("check", parquet(tmp_path / "x.parquet", rows), "--json", state=tmp_path / "state")

    (problem,) = facts(result)[0]["problems"]
    assert (problem["count"], problem["key"]) == (39, "images")
    reason = problem["examples"][0]["reason"]
    assert reason.startswith("image 1: not a readable image (6 bytes). Accepted are PNG, JPEG")


def test_duplicates_and_leakage(tmp_path: Path) -> None:
    one, two = picture(), picture("L")
    rows = [rl_row("What?", one), rl_row(" what? ", one), rl_row("Who?", two), rl_row("Why?")]
    train = parquet(tmp_path / "train.parquet", rows)
    held_out = parquet(tmp_path / "val.parquet", [rl_row("Other?", two), rl_row("Why?")])
    problems = tmp_path / "problems.jsonl"

    result = run(
        "check", train, "--validation", held_out, "--problems", problems, "--json",
        state=tmp_path / "state",
    )  # fmt: skip

    assert result.exit_code == 1
    named = [json.loads(line) for line in problems.read_text().splitlines()]
    assert [(each["row"], each["level"]) for each in named] == [
        (2, "warning"),
        (3, "warning"),
        (4, "error"),
    ]
    assert named[0]["reason"] == "duplicate: same question and images as row 1"
    assert f"row 2 of {held_out}" in named[2]["reason"]


def test_a_search_cache_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    entries = {
        "fvqa_1": {"tool_returned_web_title": ["A", "B"], "cached_images_path": ["a.png", None]},
        "fvqa_2": {"tool_returned_web_title": ["A"], "cached_images_path": ["../a.png"]},
    }
    (tmp_path / "cache.json").write_text(json.dumps(entries))

    (found,) = facts(run("check", tmp_path / "cache.json", "--json", state=tmp_path / "state"))

    assert (found["kind"], found["rows"], found["bad_rows"]) == ("search-cache", 2, 1)


def test_stats(tmp_path: Path) -> None:
    file = parquet(tmp_path / "x.parquet", [rl_row("What?", picture()), rl_row("Why?")])

    result = run("stats", file, "--json", state=tmp_path / "state")

    found = json.loads(result.stdout)
    assert (found["rows"], found["images"], found["answers"]) == (
        2,
        {"0": 1, "1": 1},
        {"choice": 2},
    )


def test_an_interrupted_check_goes_on(tmp_path: Path) -> None:
    """SIGINT to the real process; what it has finished is not looked at again."""
    noise = io.BytesIO()
    Image.effect_noise((700, 700), 50).convert("RGB").save(noise, "PNG")
    (tmp_path / "a.png").write_bytes(noise.getvalue())
    file, state = tmp_path / "x.json", tmp_path / "state"
    file.write_text(json.dumps([SFT_ROW] * checkpoints.CHECKPOINT_ROWS + [sft_row("a.png")] * 400))
    command = [sys.executable, "-m", "deepeyes_plugins.cli", "data", "check", str(file)]
    command += ["--json", "--state", str(state)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)

    while not list(state.glob("x-*/1/*.json")):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=30)[1]

    assert process.returncode == 130, errors
    assert "resumes" in errors
    (kept,) = state.glob("x-*/1/*.json")
    kept.write_bytes(kept.read_bytes().replace(b'"rows":1000', b'"rows":7'))
    file_rows = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert file_rows[0]["rows"] == 407


def test_prompts_that_training_leaves_out_are_told(tmp_path: Path) -> None:
    make_tiny_qwen2_5_vl(tmp_path / "model", ["What is shown?"])
    rows = [rl_row("What?", picture()), rl_row("What is shown? " * 100)]
    file = parquet(tmp_path / "x.parquet", rows)

    result = run(
        "check", file, "--tokenizer", tmp_path / "model", "--max-prompt-length", 100, "--json",
        state=tmp_path / "state",
    )  # fmt: skip

    found = json.loads(result.stdout)[0]
    assert (result.exit_code, found["bad_rows"], found["long_rows"]) == (0, 0, 1)
    (problem,) = found["problems"]
    assert problem["examples"][0]["row"] == 2
    assert "training leaves the row out" in problem["kind"]


def test_an_array_in_a_file_named_for_lines_is_read_as_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps([SFT_ROW, {"messages": []}, SFT_ROW], indent=1))

    (found,) = facts(run("check", file, "--json", state=tmp_path / "state"))

    assert (found["rows"], found["bad_rows"]) == (3, 1)
    assert found["problems"][0]["examples"][0]["row"] == 2


def test_links_that_lead_nowhere_are_named_and_ways_out_of_the_folder_told(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (tmp_path / "outside.png").write_bytes(picture())
    (media / "link.png").symlink_to("../outside.png")
    (media / "dangling.png").symlink_to("gone.png")
    (media / "here.png").write_bytes(picture())
    names = ["here.png", "link.png", "dangling.png", "../outside.png", "../gone.png"]
    file, problems = tmp_path / "rows" / "x.json", tmp_path / "problems.jsonl"
    file.parent.mkdir()
    file.write_text(json.dumps(list(map(sft_row, names))))

    result = run(
        "check", file, "--media-root", media, "--problems", problems, state=tmp_path / "state"
    )

    assert result.exit_code == 1
    named = [json.loads(line) for line in problems.read_text().splitlines()]
    assert [(each["row"], each["level"]) for each in named] == [
        (2, "error"),
        (3, "error"),
        (4, "error"),
        (5, "error"),
    ]
    for one, words in zip(
        named, ("--media-root or", "dangling.png", "with .. in it", "no such file"), strict=True
    ):
        assert words in one["reason"]


def test_a_zip_file_cut_or_damaged_in_the_middle(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(20)]
    whole = zipped(tmp_path / "whole.zip", dict.fromkeys(names, picture()))
    data = whole.read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(data[: len(data) // 2])
    start = data.index(b"7.png") + len(b"7.png") + 20
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(data[:start] + b"\0" * 20 + data[start + 20 :])
    file = tmp_path / "x.json"
    file.write_text(json.dumps(list(map(sft_row, names))))
    state = tmp_path / "state"

    refused = run("check", file, "--media-root", cut, state=state)
    result = run("check", file, "--media-root", damaged, "--json", state=state)

    assert refused.exit_code == 2
    assert "cut.zip" in refused.stderr and "perhaps truncated" in refused.stderr
    (found,) = facts(result)
    assert (result.exit_code, found["rows"], found["bad_rows"]) == (1, 20, 1)
    assert found["problems"][0]["examples"][0]["row"] == 8


def test_interrupted_processes_go_on_where_they_were(tmp_path: Path) -> None:
    """One process hangs in reading an image, so that Ctrl-C comes in the middle for sure."""
    images = [{"bytes": picture(), "path": None}] * 4 + [{"bytes": None, "path": "slow.png"}]
    rows = [{**rl_row(f"{at}?", picture()), "images": [one]} for at, one in enumerate(images)]
    file, state = tmp_path / "x.parquet", tmp_path / "state"
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    os.mkfifo(tmp_path / "slow.png")
    command = [sys.executable, "-m", "deepeyes_plugins.cli", "data", "check", str(file)]
    command += ["--json", "--processes", "2", "--state", str(state)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    while len(list(state.glob("x-*/*/done"))) < 2:
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # As a terminal does.
    errors = process.communicate(timeout=30)[1]

    assert process.returncode == 130, errors
    assert "resumes" in errors and "Traceback" not in errors
    for kept in state.glob("x-*/*/*.json"):
        kept.write_bytes(kept.read_bytes().replace(b'"rows":2', b'"rows":7'))
    (tmp_path / "slow.png").unlink()
    (tmp_path / "slow.png").write_bytes(picture())
    again = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(again.stdout)[0]["rows"] == 7 + 7 + 1


def test_no_space_left_for_what_is_done(tmp_path: Path) -> None:
    file, state = tmp_path / "x.json", tmp_path / "state"
    file.write_text(json.dumps([SFT_ROW] * 3000))

    with full_disk(state, 48 << 10):
        full = run("check", file, state=state)
        kept = list(state.glob("x-*/1/*.json"))

    assert full.exit_code == 2
    assert "cannot be written" in full.stderr and "--state chooses another" in full.stderr
    assert kept
    (found,) = facts(run("check", file, "--json", state=state))
    assert (found["rows"], found["bad_rows"]) == (3000, 0)


class Elements(HTMLParser):
    """Names of all elements of a page, with its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names, self.text = set[str](), ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.names.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_what_was_found_and_runs_nothing_that_stands_in_the_data(
    tmp_path: Path,
) -> None:
    hostile = "</style><script>alert(1)</script><img src=x>"
    rows = [rl_row(f"{at}?", picture()) for at in range(30)]
    rows[4]["data_source"] = hostile
    file, page = parquet(tmp_path / "x.parquet", rows), tmp_path / "new" / "page.html"

    result = run("check", file, "--html", page, state=tmp_path / "state")

    assert result.exit_code == 1
    elements = Elements(page.read_text(encoding="utf-8"))
    assert not elements.names & {"script", "img", "link", "iframe", "object"}
    assert {"svg", "rect"} <= elements.names
    assert "1 error" in elements.text and "row 5" in elements.text
    assert elements.text.count(hostile) >= 2  # In its reason and among the sources.
    assert "Pixels of an image" in elements.text and "Tokens" not in elements.text


def test_a_file_of_problems_is_whole_or_as_it_was(tmp_path: Path) -> None:
    file, problems = tmp_path / "x.json", tmp_path / "new" / "problems.jsonl"
    file.write_text(json.dumps([{"messages": []}] * 20_000))
    state = tmp_path / "state"

    assert run("check", file, "--problems", problems, state=state).exit_code == 1
    whole = problems.read_text()
    assert whole.count("\n") == 20_000
    with full_disk(tmp_path / "disk", 60 << 10):
        (tmp_path / "disk" / "problems.jsonl").write_text("as it was")
        full = run("check", file, "--problems", tmp_path / "disk/problems.jsonl", state=state)

    assert full.exit_code == 2
    assert "problems.jsonl cannot be written: " in full.stderr and "space" in full.stderr
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["problems.jsonl"]
    assert (tmp_path / "disk/problems.jsonl").read_text() == "as it was"
    assert list(state.iterdir())


def test_results_are_not_written_over_what_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps([SFT_ROW]))

    for option in ("--html", "--problems"):
        refused = run("check", file, option, file, state=tmp_path / "state")
        assert refused.exit_code == 2 and "must not change" in refused.stderr
    assert json.loads(file.read_text()) == [SFT_ROW]
