"""Rows of the published reinforcement-learning data become tasks, or say why not."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from deepeyes_plugins.data import images, rl_rows
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.rl_rows import (
    environment_name,
    messages_from_raw_prompt,
    task_from_row,
)
from deepeyes_plugins.protocol.content import EncodedImage, Message


def jpeg(side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(buffer, "JPEG")
    return buffer.getvalue()


def row(**columns: Any) -> dict[str, Any]:
    return {
        "prompt": [
            {"role": "system", "content": "Use tools."},
            {"role": "user", "content": "Compare <image> with <image>."},
        ],
        "images": [{"bytes": jpeg(40), "path": None}, {"bytes": jpeg(50), "path": "b.jpg"}],
        "data_source": "perception",
        "env_name": "deepeyes_v2",
        "reward_model": {"ground_truth": "A", "style": "rule"},
        "extra_info": {"index": 7, "answer": "A", "question": "Same?", "split": "train"},
        **columns,
    }


def test_row_becomes_a_task_without_its_answer() -> None:
    task = task_from_row(row())

    assert task.id == "7"
    assert task.data_source == "perception"
    assert task.ground_truth == "A"
    assert task.metadata == {"index": 7, "question": "Same?", "split": "train"}
    assert task.messages == (
        Message("system", ("Use tools.",)),
        Message(
            "user",
            ("Compare ", EncodedImage(jpeg(40)), " with ", EncodedImage(jpeg(50)), "."),
        ),
    )


@pytest.mark.parametrize(
    "absent", [None, float("nan"), np.float32("nan"), pd.NA, "", "  "], ids=repr
)
def test_what_data_frames_have_for_no_value_is_none(absent: Any) -> None:
    with pytest.raises(RowError, match="no ground truth in 'reward_model'"):
        task_from_row(row(reward_model={"ground_truth": absent, "style": "rule"}))
    with pytest.raises(RowError, match="no ground truth in 'reward_model'"):
        task_from_row(row(reward_model=absent))
    with pytest.raises(RowError, match="no 'data_source'"):
        task_from_row(row(data_source=absent))
    with pytest.raises(RowError, match="'prompt' is missing"):
        task_from_row(row(prompt=absent, images=None))
    unnamed = task_from_row(row(extra_info={"index": absent, "question": absent}))
    assert unnamed.id == task_from_row(row(extra_info=absent)).id
    assert unnamed.question == "Compare  with ."
    assert environment_name(row(env_name=absent), "deepeyes_v2") == "none"
    text = row(prompt=[{"role": "user", "content": "Why?"}], images=absent)
    assert task_from_row(text).images == ()
    files = [{"bytes": absent, "path": absent}, jpeg()]
    with pytest.raises(RowError, match="an image without bytes or path"):
        task_from_row(row(images=files))


@pytest.mark.parametrize("written", ["nan", "None", "N/A", 0, False])
def test_what_somebody_wrote_is_an_answer(written: Any) -> None:
    truth = {"ground_truth": written, "style": "rule"}
    assert task_from_row(row(reward_model=truth)).ground_truth == str(written)


def test_the_name_of_a_singular_column_gets_a_hint() -> None:
    with pytest.raises(RowError, match="the row has 'image': rename it to 'images', a list"):
        task_from_row(row(images=None, image=jpeg()))


def test_control_strings_are_text_but_for_the_placeholder() -> None:
    asked = [{"role": "user", "content": "<image> and <image>: <|image_pad|>, <video>?"}]
    task = task_from_row(row(prompt=asked))
    assert len(task.images) == 2
    assert task.messages[0].text == " and : < |image_pad|>, < video>?"


def test_images_as_paths_bytes_and_pillow(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(jpeg())
    drawn = Image.new("RGB", (33, 44), "red")

    for entry in (file, str(file), f"file://{file}", {"path": str(file)}, jpeg()):
        assert images.image_from(entry).data == jpeg()
    assert images.image_from({"bytes": None, "image": drawn}).pil().size == (33, 44)


def test_a_pillow_image_on_its_side_is_turned_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned.jpg"
    Image.new("RGB", (60, 40)).save(file, exif=exif)
    opened = Image.open(file)

    for entry in (opened, opened.copy(), ImageOps.exif_transpose(opened)):
        assert images.image_from(entry).pil().size == (40, 60)
    assert images.image_from(opened).data == file.read_bytes()


def test_a_pillow_image_of_16_bits_keeps_its_range() -> None:
    for mode in ("I", "I;16"):
        drawn = Image.new(mode, (33, 44), 0x8000)
        assert images.image_from(drawn).pil().getpixel((0, 0)) == (128, 128, 128)


def test_question_without_index_is_named_by_its_content() -> None:
    one, same = task_from_row(row(extra_info=None)), task_from_row(row(extra_info={}))
    other = task_from_row(row(extra_info=None, images=[jpeg(41), jpeg(50)]))

    assert one.id == same.id != other.id


def test_raw_prompt_of_verl_keeps_original_files(tmp_path: Path) -> None:
    """As verl.utils.dataset.rl_dataset hands it over: Pillow images beside or instead of bytes."""
    file = tmp_path / "a.jpg"
    file.write_bytes(jpeg())
    shrunk = Image.open(file)
    shrunk.thumbnail((20, 20))
    raw_prompt = [
        {"role": "system", "content": "Use tools."},
        {
            "role": "user",
            "content": [
                {"type": "image", "bytes": jpeg(), "image": Image.open(io.BytesIO(jpeg()))},
                {"type": "image", "image": Image.open(io.BytesIO(jpeg()))},
                {"type": "image", "image": Image.open(file)},
                {"type": "image", "image": str(file)},
                {"type": "image", "image": shrunk},
                {"type": "text", "text": "What?"},
            ],
        },
    ]

    system, user = messages_from_raw_prompt(np.array(raw_prompt, dtype=object))

    assert system == Message("system", ("Use tools.",))
    assert [image.data == jpeg() for image in user.images] == [True, True, True, True, False]
    assert user.images[-1].size == (20, 20)
    assert user.parts[-1] == "What?"
    assert task_from_row(row(raw_prompt=raw_prompt, prompt=None)).messages == (system, user)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"prompt": None}, "'prompt' is missing"),
        ({"prompt": "What?"}, "'prompt' is a str, not a list"),
        ({"prompt": [], "images": []}, "'prompt' does not end with a user message"),
        ({"prompt": [{"content": "What?"}]}, "message 1 of 'prompt' has no role"),
        ({"prompt": [{"role": "user", "content": [5]}]}, "neither text nor an image: 5"),
        ({"images": None}, "more <image> placeholders .* message 2 lacks one"),
        ({"images": [jpeg()] * 3}, "3 images in 'images' but only 2 <image>"),
        ({"images": [{"bytes": None, "path": None}]}, "an image without bytes or path"),
        ({"images": ["gone.png"]}, "image gone.png cannot be read: No such file"),
        ({"images": [3.5]}, "an image given as float"),
        ({"data_source": None}, "no 'data_source'"),
        ({"reward_model": None}, "no ground truth in 'reward_model'"),
        ({"reward_model": {"ground_truth": ""}}, "no ground truth in 'reward_model'"),
        ({"reward_model": {"ground_truth": ["A"]}}, "'reward_model' is a list, not a string"),
        ({"extra_info": "7"}, "'extra_info' is a str, not a mapping"),
    ],
)
def test_unusable_row_names_the_column(columns: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        task_from_row(row(**columns))


def test_environment_of_a_row(caplog: pytest.LogCaptureFixture) -> None:
    assert environment_name({"env_name": "visual_toolbox_v2"}, "deepeyes_v2") == "visual_toolbox_v2"
    assert environment_name({"env_name": ""}, "deepeyes_v2") == "none"
    assert environment_name({"env_name": None}, "deepeyes_v2") == "none"
    assert environment_name({}, "deepeyes_v2") == "deepeyes_v2"


def test_stale_name_is_mapped_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    rl_rows._warn_of_stale_name.cache_clear()
    with caplog.at_level(logging.WARNING):
        names = {environment_name({"env_name": "code_toolbox_lingyi_v1"}, "") for _ in range(3)}

    assert names == {"deepeyes_v2"}
    assert len(caplog.records) == 1
    assert "code_toolbox_lingyi_v1" in caplog.text
