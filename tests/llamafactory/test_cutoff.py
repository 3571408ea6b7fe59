"""A sample that is too long ends in the assistant's text or between turns, never in an image."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_template_and_fix_tokenizer
from llamafactory.data.processor import SupervisedDatasetProcessor
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from deepeyes_plugins.hosts.llamafactory.processors import TruncatingProcessor
from tests.llamafactory.conftest import Rows, tokenized, train_arguments, write_dataset

LOOK = "<think>Look.</think>\n<code>\n```python\nimage_1\n```\n</code>"
ANSWER = "<think>Red.</think>\n<answer>red</answer>"
MESSAGES = [
    ("user", "<image><image>What colour?"),
    ("assistant", LOOK),
    ("user", "Images:\n<image><image><image>"),
    ("assistant", LOOK),
    ("user", "Images:\n<image>"),
    ("assistant", ANSWER),
]
IMAGE_TOKENS = 4  # The tiny model sees every square image at 56 x 56.


class Pipeline:
    """LLaMA-Factory's tokenization, collation and the model, without a data set around them."""

    def __init__(self, model: Path, folder: Path, template: str) -> None:
        arguments = train_arguments(model, folder, folder, folder / "out")
        model_args, self.data_args, _, _, _ = get_train_args({**arguments, "template": template})
        self.tools = load_tokenizer(model_args)
        self.tokenizer = self.tools["tokenizer"]
        self.template = get_template_and_fix_tokenizer(self.tokenizer, self.data_args)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model)

    def encode(self, kind: type[Any], cutoff_len: int, images: list[str]) -> dict[str, list[Any]]:
        settings = SimpleNamespace(**{**vars(self.data_args), "cutoff_len": cutoff_len})
        messages = [{"role": role, "content": text} for role, text in MESSAGES]
        batch = {
            "_prompt": [messages[:-1]],
            "_response": [messages[-1:]],
            "_images": [list(images)],
            **{name: [None] for name in ("_system", "_tools", "_videos", "_audios")},
        }
        found: dict[str, list[Any]] = kind(
            template=self.template, data_args=settings, **self.tools
        ).preprocess_dataset(batch)
        return found

    def loss(self, inputs: dict[str, list[Any]]) -> float:
        """One step forward, on one sample."""
        names = ("input_ids", "attention_mask", "labels", "images")
        collate = SFTDataCollatorWith4DAttentionMask(
            template=self.template, model=self.model, **self.tools
        )
        batch = collate([{name: inputs[name][0] for name in names}])
        with torch.inference_mode():
            return float(self.model(**batch).loss)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    for number, path in enumerate(paths):
        Image.new("RGB", (56 << number % 3,) * 2, "red").save(path)
    return paths


def test_upstream_cuts_within_an_image_and_training_stops(
    tiny_model_path: Path, tmp_path: Path, images: list[str]
) -> None:
    pipeline = Pipeline(tiny_model_path, tmp_path, "qwen2_vl")
    whole = pipeline.encode(SupervisedDatasetProcessor, 4096, images)["input_ids"][0]
    pad = pipeline.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    within_the_last = len(whole) - whole[::-1].index(pad) - 2

    cut = pipeline.encode(SupervisedDatasetProcessor, within_the_last, images)

    assert cut["input_ids"][0].count(pad) < IMAGE_TOKENS * len(cut["images"][0])
    with pytest.raises(ValueError, match=r"[Ii]mage features and image tokens do not match"):
        pipeline.loss(cut)


def test_every_length(tiny_model_path: Path, tmp_path: Path, images: list[str]) -> None:
    pipeline = Pipeline(tiny_model_path, tmp_path, "deepeyes_qwen2_vl")
    token = pipeline.tokenizer.convert_tokens_to_ids
    pad, opened, closed = map(token, ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>"))
    encoded = pipeline.encode(TruncatingProcessor, 4096, images)
    whole, labels = encoded["input_ids"][0], encoded["labels"][0]
    ends: set[int] = set()
    kept_images: set[int] = set()

    for cutoff in range(1, len(whole) + 2):
        found = pipeline.encode(TruncatingProcessor, cutoff, images)
        if not found["input_ids"]:
            assert all(not column for column in found.values())
            continue
        (ids,), (kept,) = found["input_ids"], found["images"]
        assert 0 < len(ids) <= cutoff
        assert ids == whole[: len(ids)] and found["labels"][0] == labels[: len(ids)]
        assert ids.count(pad) == IMAGE_TOKENS * len(kept)
        assert ids.count(opened) == ids.count(closed) == len(kept)
        assert kept == images[: len(kept)]
        assert found["labels"][0][-1] != -100  # It ends with something to learn.
        ends.add(len(ids))
        kept_images.add(len(kept))
        if cutoff % 29 == 0:
            assert pipeline.loss(found) > 0

    assert max(ends) == len(whole) and kept_images == {2, 5, 6}
    # As long as may be: up to the limit, unless that falls into a user's turn.
    trained = {at + 1 for at, label in enumerate(labels) if label != -100}
    assert ends == trained


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packing": True},
        {"neat_packing": True},
        {"streaming": True, "dataloader_num_workers": 1},
        {"preprocessing_num_workers": 2},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_a_question_that_does_not_fit_is_left_out_and_named(
    tiny_model_path: Path,
    demonstrations: Path,
    rows: Rows,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
) -> None:
    changed = copy.deepcopy(rows)
    changed[3]["messages"][1]["content"] = "<image>Blah" + " blah" * 500
    changed[3]["messages"] = changed[3]["messages"][:2] + changed[3]["messages"][-1:]
    changed[3]["images"] = changed[3]["images"][:1]
    data = write_dataset(tmp_path / "data", changed)
    arguments = train_arguments(tiny_model_path, data, demonstrations, tmp_path / "out")

    with caplog.at_level(logging.WARNING, "deepeyes_plugins"):
        examples = tokenized({**arguments, "cutoff_len": 300, **options})

    if "preprocessing_num_workers" not in options:  # There, workers say it.
        assert "1 of 8 samples are dropped" in caplog.text
        assert "Samples: '<image>Blah blah" in caplog.text
    wanted = sum(len(row["images"]) for row in changed) - 1
    assert sum(len(example["images"] or []) for example in examples) == wanted
    if "packing" in options or "neat_packing" in options:
        assert len(examples) < 7
        assert all(0 < len(example["input_ids"]) <= 300 for example in examples)
    else:
        assert len(examples) == 7
