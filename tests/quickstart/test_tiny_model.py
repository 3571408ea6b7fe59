"""The tiny Qwen2.5-VL: what hosts rely on, and what its eyes can and cannot see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from deepeyes_plugins.quickstart.leakage import (
    load_image_processor,
    measure_leakage,
    model_views,
)
from deepeyes_plugins.quickstart.task import (
    CELL_NAMES,
    COLOURS,
    answer_turn,
    crop_turn,
    make_example,
    prompt,
    split_examples,
    task_texts,
)
from deepeyes_plugins.quickstart.tiny_model import VIEW_SIDE, make_tiny_qwen2_5_vl

TEXT_SETTINGS = settings(deadline=None, max_examples=200)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny_qwen2_5_vl(folder, task_texts())
    return folder


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Any:
    return AutoProcessor.from_pretrained(checkpoint)


def chat(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "role": role,
            "content": [
                {"type": "image"} if part == "<image>" else {"type": "text", "text": part}
                for part in text.replace("<image>", "\0<image>\0").split("\0")
                if part
            ],
        }
        for role, text in turns
    ]


class TestCheckpoint:
    def test_it_is_the_real_architecture_and_small(self, checkpoint: Path) -> None:
        model = AutoModelForImageTextToText.from_pretrained(checkpoint)
        assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
        assert model.dtype == torch.float32
        assert model.num_parameters() <= 1_800_000

    def test_the_same_seed_gives_the_same_files(self, checkpoint: Path, tmp_path: Path) -> None:
        make_tiny_qwen2_5_vl(tmp_path, task_texts())
        names = sorted(path.name for path in checkpoint.iterdir())
        assert names == sorted(path.name for path in tmp_path.iterdir())
        for name in names:
            assert (tmp_path / name).read_bytes() == (checkpoint / name).read_bytes(), name

    def test_another_seed_gives_other_weights(self, checkpoint: Path, tmp_path: Path) -> None:
        make_tiny_qwen2_5_vl(tmp_path, task_texts(), seed=1)
        weights = "model.safetensors"
        assert (tmp_path / weights).read_bytes() != (checkpoint / weights).read_bytes()

    def test_making_it_leaves_the_random_state_alone(self, tmp_path: Path) -> None:
        before = torch.get_rng_state()
        make_tiny_qwen2_5_vl(tmp_path, task_texts(), layers=1, vision_layers=1)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("name", ["hidden_size", "vision_hidden_size"])
    def test_a_width_that_does_not_fit_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name} must be a multiple of 32, got 100"):
            make_tiny_qwen2_5_vl(tmp_path, task_texts(), **{name: 100})
        assert not list(tmp_path.iterdir())

    def test_a_prompt_with_its_picture_generates(self, checkpoint: Path, processor: Any) -> None:
        example = make_example(0)
        text = processor.apply_chat_template(
            chat(*((turn.role, turn.text) for turn in prompt(example))),
            tokenize=False,
            add_generation_prompt=True,
        )
        inputs = processor(text=[text], images=[example.picture], return_tensors="pt")
        model = AutoModelForImageTextToText.from_pretrained(checkpoint)
        output = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
        assert output.shape == (1, inputs["input_ids"].shape[1] + 3)


class TestTokens:
    @TEXT_SETTINGS
    @given(text=st.text())
    def test_any_text_survives(self, tokenizer: Any, text: str) -> None:
        normalised = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
        assert tokenizer.decode(tokenizer.encode(text)) == normalised

    def test_special_tokens_vanish_and_tool_calls_survive(self, tokenizer: Any) -> None:
        text = "<|im_start|>a<tool_call>b</tool_call><|im_end|><|endoftext|>"
        tokens = tokenizer.encode(text)
        assert len(tokens) == 7
        assert tokenizer.decode(tokens, skip_special_tokens=True) == "a<tool_call>b</tool_call>"
        assert tokenizer.eos_token == "<|im_end|>"
        assert tokenizer.pad_token == "<|endoftext|>"

    @pytest.mark.parametrize("turn", [*map(crop_turn, range(4)), *map(answer_turn, COLOURS)])
    def test_a_prefilled_thought_gives_the_tokens_of_the_whole(
        self, tokenizer: Any, turn: str
    ) -> None:
        rest = turn.removeprefix("<think>")
        assert tokenizer.encode("<think>") + tokenizer.encode(rest) == tokenizer.encode(turn)

    @TEXT_SETTINGS
    @given(thought=st.text(alphabet=st.characters(categories=["L", "N"]), min_size=1))
    def test_so_does_any_thought_that_begins_with_a_word(
        self, tokenizer: Any, thought: str
    ) -> None:
        whole = tokenizer.encode("<think>" + thought)
        assert tokenizer.encode("<think>") + tokenizer.encode(thought) == whole

    @pytest.mark.parametrize("cell", range(len(CELL_NAMES)))
    def test_the_closing_code_tag_ends_with_a_token(self, tokenizer: Any, cell: int) -> None:
        turn = tokenizer.encode(crop_turn(cell) + "<|im_end|>\n")
        stop = turn.index(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        assert tokenizer.decode(turn[:stop]).endswith("\n</code>")
        assert turn[:stop] == tokenizer.encode(crop_turn(cell))
        assert not tokenizer.decode(turn[: stop - 1]).endswith("</code>")

    def test_trajectories_are_short(self, tokenizer: Any) -> None:
        assert max(len(tokenizer.encode(crop_turn(cell))) for cell in range(4)) <= 50
        assert max(len(tokenizer.encode(answer_turn(colour))) for colour in COLOURS) <= 16


class TestChatTemplate:
    def test_text_and_images_in_their_order(self, processor: Any) -> None:
        messages = chat(("system", "Be brief."), ("user", "<image>What?"), ("assistant", "This."))
        assert processor.apply_chat_template(messages, tokenize=False) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n"
            "<|im_start|>assistant\nThis.<|im_end|>\n"
        )

    def test_a_system_prompt_is_supplied_where_none_is_given(self, processor: Any) -> None:
        text = processor.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
        )
        assert text == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        )


class TestEyes:
    def test_every_image_becomes_four_tokens(self, processor: Any) -> None:
        picture = make_example(0).picture
        inputs = processor(
            text=["<|vision_start|><|image_pad|><|vision_end|>"],
            images=[picture],
            return_tensors="pt",
        )
        assert inputs["input_ids"].eq(processor.image_token_id).sum() == 4

    def test_the_view_is_the_picture_in_small(self, checkpoint: Path) -> None:
        picture = make_example(0).picture
        view = model_views(load_image_processor(checkpoint), [picture])[0]
        small = picture.resize((VIEW_SIDE, VIEW_SIDE), Image.Resampling.BICUBIC)
        expected = (torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255 - 0.5) / 0.25
        torch.testing.assert_close(view, expected, rtol=0, atol=0.05)

    def test_the_colour_is_in_the_crop_and_not_in_the_view(self, checkpoint: Path) -> None:
        leakage = measure_leakage(
            load_image_processor(checkpoint),
            list(split_examples("sft", 1000)),
            list(split_examples("heldout", 800)),
        )
        assert leakage.whole_picture <= 0.30  # chance is 0.25
        assert leakage.right_crop >= 0.95
