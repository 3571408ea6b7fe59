"""Images within message parts are read the same by checks, ``prepare``, SFT and RL."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.data.check.rl import RowRules, check_rl_parquet
from deepeyes_plugins.data.check.sft import check_sft_file
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.formatter import format_sharegpt
from deepeyes_plugins.data.media import read_media
from deepeyes_plugins.data.message_parts import plain_contents
from deepeyes_plugins.data.prepare import prepare_rl, prepare_sft
from deepeyes_plugins.data.rl_rows import prompt_messages
from deepeyes_plugins.data.row_store import IMAGE_SIZES, Rows, store_files
from deepeyes_plugins.protocol.content import EncodedImage
from tests.data.test_checks import PLAIN, image_bytes
from tests.data.test_media import zipped

PICTURE = image_bytes()
URI = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
TEXT = {"type": "text", "text": "What colour?"}

NAMED: dict[str, Callable[[str], dict[str, Any]]] = {
    "image_url": lambda name: {"type": "image_url", "image_url": {"url": name}},
    "image_url as a text": lambda name: {"type": "image_url", "image_url": name},
    "input_image": lambda name: {"type": "input_image", "image_url": name},
    "image": lambda name: {"type": "image", "image": name},
    "image with path": lambda name: {"type": "image", "image": {"bytes": None, "path": name}},
    "path": lambda name: {"type": "image", "path": name},
    "url": lambda name: {"type": "image", "url": name},
}
HELD = {
    "bytes": {"type": "image", "bytes": PICTURE},
    "image of bytes": {"type": "image", "image": PICTURE},
    "bytes and path": {"type": "image", "image": {"bytes": PICTURE, "path": "gone.png"}},
}
PARTS = HELD | {
    f"{form}, {kind}": part(name)
    for form, part in NAMED.items()
    for kind, name in (("a path", "a.png"), ("a data URI", URI), ("a file", "file://a.png"))
}
IN_JSON = [name for name in PARTS if name not in HELD]


def rl_row(*parts: Any, **columns: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": list(parts)}],
        "data_source": "reason",
        "env_name": "deepeyes_v2",
        "reward_model": {"ground_truth": "A", "style": "rule"},
        **columns,
    }


def sft_row(*parts: Any, **columns: Any) -> dict[str, Any]:
    # Text beside parts would be two types in one column, which `prepare` brings together.
    answer = [{"type": "text", "text": PLAIN["messages"][1]["content"]}]
    return {
        "messages": [
            {"role": "user", "content": list(parts)},
            {"role": "assistant", "content": answer},
        ],
        **columns,
    }


def parquet(folder: Path, row: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist([row]), folder / "x.parquet")
    return folder / "x.parquet"


def array(folder: Path, row: dict[str, Any]) -> Path:
    (folder / "x.json").write_text(json.dumps([row]))
    return folder / "x.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    (made / "a.png").write_bytes(PICTURE)
    return made


@pytest.mark.parametrize("name", PARTS)
def test_rl_reads_checks_and_prepares_every_form(name: str, folder: Path, tmp_path: Path) -> None:
    row = rl_row({"type": "text", "text": "Look: "}, PARTS[name], TEXT)
    file = parquet(folder, row)

    assert check_rl_parquet(file).problems == []
    prepared = prepare_rl([file], tmp_path / "out")
    stored = store_files([file], tmp_path / "cache", RowRules())
    trained = Rows(stored).read(0)
    (written,) = pq.read_table(prepared.files[0]).to_pylist()

    read = EncodedImage(PICTURE)
    assert prompt_messages(row, folder)[0].parts == ("Look: ", read, "What colour?")
    assert prompt_messages(written)[0].parts == ("Look: ", read, "What colour?")
    assert prompt_messages(trained)[0].parts == ("Look: ", read, "What colour?")
    assert Rows(stored).read(0, [IMAGE_SIZES])[IMAGE_SIZES] == [[64, 48]]
    assert written["images"][0]["bytes"] == PICTURE


@pytest.mark.parametrize("name", IN_JSON)
def test_sft_reads_checks_and_prepares_every_form(name: str, folder: Path, tmp_path: Path) -> None:
    file = array(folder, sft_row({"type": "text", "text": "Look: "}, PARTS[name], TEXT))

    assert check_sft_file(file).problems == []
    prepared = prepare_sft([file], tmp_path / "out")
    row = json.loads(prepared.files[0].read_text())

    assert row["messages"][0]["content"] == "Look: <image>What colour?"
    assert read_media(row["images"][0]) == PICTURE
    assert Path(row["images"][0]).is_absolute()
    assert check_sft_file(prepared.files[0], tmp_path).problems == []


def test_images_of_parts_and_of_the_column_keep_their_order() -> None:
    contents, images = plain_contents(
        [
            "<image>First",
            [{"type": "image"}, {"type": "image", "path": "p.png"}, "and", {"type": "image"}],
            "<image>",
        ],
        ["a.png", "b.png", "c.png", "d.png"],
    )

    assert contents == ["<image>First", "<image><image>and<image>", "<image>"]
    assert images == ["a.png", "b.png", "p.png", "c.png", "d.png"]


@given(st.lists(st.sampled_from(["text", "<image>", "image", "held"]) | st.text(), max_size=6))
def test_there_is_a_placeholder_for_each_image_and_for_no_text(kinds: list[str]) -> None:
    made = {"image": {"type": "image"}, "held": {"type": "image", "bytes": b"b"}}
    parts = [made.get(kind, {"type": "text", "text": kind}) for kind in kinds]

    (text,), images = plain_contents([parts], ["c"] * kinds.count("image"))

    assert text.count("<image>") == len(images)
    assert images == [{"image": "c", "held": b"b"}[kind] for kind in kinds if kind in made]


def test_a_placeholder_that_text_spells_stays_text(folder: Path, tmp_path: Path) -> None:
    spelled = {"type": "text", "text": "What does <image> mean in HTML?"}
    rows = {"sft": sft_row(PARTS["image, a path"], spelled), "rl": rl_row(HELD["bytes"], spelled)}

    sft = prepare_sft([array(folder, rows["sft"])], tmp_path / "sft")
    rl = prepare_rl([parquet(folder, rows["rl"])], tmp_path / "rl")

    wanted = "<image>What does < image> mean in HTML?"
    assert json.loads(sft.files[0].read_text())["messages"][0]["content"] == wanted
    (written,) = pq.read_table(rl.files[0]).to_pylist()
    assert written["prompt"][0]["content"] == wanted and len(written["images"]) == 1
    assert "< image> mean" in sft.report.read_text()


@pytest.mark.parametrize("form", NAMED)
@pytest.mark.parametrize("place", ["absolute", "above", "link", "zip", "network"])
def test_a_part_does_not_lead_out_of_the_folder(
    form: str, place: str, folder: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(PICTURE)
    (folder / "link.png").symlink_to(secret)
    name = {
        "absolute": str(secret),
        "above": "../secret.png",
        "link": "link.png",
        "zip": f"zip://1.png::{zipped(tmp_path / 'others.zip', {'1.png': PICTURE})}",
        "network": "https://example.com/a.png",
    }[place]
    (folder / "good.json").write_text(json.dumps([PLAIN]))
    file = parquet(folder, rl_row(NAMED[form](name), TEXT))
    array(folder, sft_row(NAMED[form](name), TEXT))

    sft = prepare_sft([folder], tmp_path / "out")

    assert (sft.summary.bad, sft.summary.written) == (1, 1)
    with pytest.raises(ValueError, match=r"none of 1 rows can be used\n.*row 1: images: image 1"):
        prepare_rl([file], tmp_path / "rl")
    for report in (check_rl_parquet(file), check_sft_file(folder / "x.json")):
        (problem,) = report.errors
        assert (problem.row, problem.key) == (1, "images")
    if place == "network":
        assert "images are not downloaded" in sft.summary.faults[0]
        assert "images are not downloaded" in check_rl_parquet(file).errors[0].reason
        assert "images are not downloaded" in check_sft_file(folder / "x.json").errors[0].reason


def test_parts_of_other_kinds_are_named(folder: Path, tmp_path: Path) -> None:
    video = {"type": "video", "video": "a.mp4"}
    with pytest.raises(RowError, match=r"part 2 of message 1 is neither .* 'a\.mp4'"):
        format_sharegpt(sft_row(TEXT, video))
    (problem,) = check_rl_parquet(parquet(folder, rl_row(TEXT, video))).errors
    assert "part 2 of message 1 is neither text nor an image" in problem.reason
    broken = f"{URI[:-9]}!"
    (problem,) = check_sft_file(array(folder, sft_row(NAMED["url"](broken)))).errors
    assert problem.reason.startswith("image 1 (data:image/png;base64,…): the data URI cannot be")
