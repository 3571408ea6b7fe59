"""What the model is trained on, token by token, through LLaMA-Factory's own pipeline."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.protocol.content import EncodedImage, Part
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2
from deepeyes_plugins.protocol.observations import code_observation, text_search_observation
from tests.llamafactory.conftest import Rows, tokenized, train_arguments, write_dataset

IGNORED = -100

CODE = "<think>Crop it.</think>\n<code>\n```python\nimage_1.crop((0, 0, 9, 9))\n```\n</code>"
SEARCH = (
    '<think>?</think>\n<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
)
ANSWER = "<think>It is red.</think>\n<answer>red</answer>"


def placeholder_text(parts: tuple[Part, ...]) -> str:
    return "".join(part if isinstance(part, str) else "<image>" for part in parts)


def test_every_token_and_label_of_a_trajectory(tiny_model_path: Path, tmp_path: Path) -> None:
    """LLaMA-Factory trains on what the checkpoint's chat template renders.

    Labels are set on what an engine would generate: the assistant's turns behind ``<think>``, with
    their ``<|im_end|>``. Everything else is ignored.
    """
    sizes = [(448, 448), (300, 100), (90, 400)]
    images = [Image.new("RGB", size, "red") for size in sizes]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    figures = [EncodedImage.from_pil(image) for image in images[1:]]
    observation = placeholder_text(code_observation("a <image> and <|im_end|>", "", figures))
    found = placeholder_text(text_search_observation("x", []))
    turns = [
        ("system", "Use code to zoom in, then answer."),
        ("user", "<image>What colour is the dot in the frame?"),
        ("assistant", CODE),
        ("user", observation),
        ("assistant", SEARCH),
        ("user", found),
        ("assistant", ANSWER),
    ]
    row = {
        "messages": [{"role": role, "content": text} for role, text in turns],
        "images": [f"{number}.png" for number in range(3)],
    }
    data = write_dataset(tmp_path / "data", [row])

    (example,) = tokenized(train_arguments(tiny_model_path, data, tmp_path, tmp_path / "out"))

    processor = AutoProcessor.from_pretrained(tiny_model_path)
    # A template ends the last turn with a line break, which nobody generates.
    expected = rendered(processor, turns, images)[:-1]
    assert example["input_ids"] == expected
    assert example["labels"] == labels_of(processor.tokenizer, expected)
    image_token = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert example["input_ids"].count(image_token) == sum(image_tokens(processor, images))
    assert example["images"] == [str(tmp_path / f"{number}.png") for number in range(3)]

    # Reinforcement learning continues the very same prefix: prompt, then the prefilled <think>.
    for position, (role, _) in enumerate(turns):
        if role == "assistant":
            prefix = rendered(processor, turns[:position], images, add_generation_prompt=True)
            prefix += processor.tokenizer(DEEPEYES_V2.prefill).input_ids
            assert example["input_ids"][: len(prefix)] == prefix


def rendered(
    processor: Any, turns: list[tuple[str, str]], images: list[Image.Image], **options: Any
) -> list[int]:
    """Token ids by the checkpoint's own chat template."""
    pictures = iter(images)
    messages = []
    for role, text in turns:
        content: list[dict[str, Any]] = []
        for number, piece in enumerate(text.split("<image>")):
            if number:
                content.append({"type": "image", "image": next(pictures)})
            content.append({"type": "text", "text": piece})
        messages.append({"role": role, "content": content})
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    return list(inputs["input_ids"][0])


def labels_of(tokenizer: Any, ids: list[int]) -> list[int]:
    """The ids of assistant turns behind their prefill in their places, ``IGNORED`` elsewhere."""
    opening = tokenizer("<|im_start|>assistant\n" + DEEPEYES_V2.prefill).input_ids
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    labels = [IGNORED] * len(ids)
    for start in range(len(opening), len(ids)):
        if ids[start - len(opening) : start] == opening:
            end = ids.index(end_of_turn, start) + 1
            labels[start:end] = ids[start:end]
    return labels


def image_tokens(processor: Any, images: list[Image.Image]) -> list[int]:
    grids = processor.image_processor(images=images, return_tensors="pt")["image_grid_thw"]
    return [int(grid.prod()) // processor.image_processor.merge_size**2 for grid in grids]


def test_a_turn_without_its_prefill_is_named(
    tiny_model_path: Path, demonstrations: Path, rows: Rows, tmp_path: Path
) -> None:
    changed = copy.deepcopy(rows)
    changed[1]["messages"][2]["content"] = "\n" + rows[1]["messages"][2]["content"]
    changed[2]["messages"][2]["content"] = "I look. " + rows[2]["messages"][2]["content"]
    data = write_dataset(tmp_path / "data", changed)
    arguments = train_arguments(tiny_model_path, data, demonstrations, tmp_path / "out")

    with pytest.raises(DataError) as raised:
        tokenized(arguments)
    assert "row 3: turn 3 (assistant) does not begin with <think>" in str(raised.value)
    assert "1 of 8 rows" in str(raised.value)  # White space ahead of it is no reason.

    assert len(tokenized({**arguments, "template": "qwen2_vl"})) == 8


def test_the_checkpoint_keeps_its_own_chat_template(tiny_model_path: Path) -> None:
    """What is saved behind training is what a server and verl read."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    before = tokenizer.chat_template, tokenizer.eos_token, len(tokenizer)

    get_template_and_fix_tokenizer(tokenizer, DataArguments(template="deepeyes_qwen2_vl"))

    assert (tokenizer.chat_template, tokenizer.eos_token, len(tokenizer)) == before


@pytest.mark.parametrize("streaming", [False, True])
def test_images_that_appear_late_in_a_file(
    tiny_model_path: Path, demonstrations: Path, rows: Rows, tmp_path: Path, streaming: bool
) -> None:
    """``datasets`` types a column by its first 1,000 rows, of which none need have an image."""
    plain = {
        "messages": [
            {"role": "user", "content": "red or blue?"},
            {"role": "assistant", "content": "<think>red</think>\n<answer>red</answer>"},
        ]
    }
    data = write_dataset(tmp_path / "data", [plain] * 1001 + rows[:2])
    arguments = train_arguments(tiny_model_path, data, demonstrations, tmp_path / "out")
    if streaming:
        arguments |= {"streaming": True, "dataloader_num_workers": 1}

    examples = tokenized(arguments)

    assert len(examples) == 1003
    assert sum(len(example["images"] or []) for example in examples) == 4
