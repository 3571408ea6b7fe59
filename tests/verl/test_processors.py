"""Qwen2.5-VL and Qwen3-VL: what we send fits what processor, trainer and model make of it."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.utils.tokenizer import hf_processor
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from deepeyes_plugins.hosts.transformers.images import image_bounds, model_image
from deepeyes_plugins.hosts.verl.placeholders import without_pixels
from deepeyes_plugins.hosts.verl.policy import TokenPolicy, chat_message
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.protocol.observations import code_observation
from deepeyes_plugins.quickstart.task import task_texts
from deepeyes_plugins.quickstart.tiny_model import make_tiny_qwen2_5_vl
from deepeyes_plugins.rollout import Observation
from tests.verl.conftest import ScriptedEngine, make_policy, picture, question
from tests.verl.tiny_qwen3_vl import make_tiny_qwen3_vl

CODE = "Look.</think>\n<code>\n```python\nimage_1\n```\n</code>"
REAL_BOUNDS = {"shortest_edge": 56**2, "longest_edge": 1280 * 28**2}


class Family(NamedTuple):
    folder: Path
    processor: Any
    builder: Any


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl", "qwen3_vl_thinking"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "qwen2_5_vl":
        make_tiny_qwen2_5_vl(folder, task_texts())
    else:
        make_tiny_qwen3_vl(folder, task_texts(), thinking="thinking" in request.param)
    processor = hf_processor(str(folder))
    if request.param == "qwen2_5_vl":
        # The tiny one has a single size for all images, for the sake of speed.
        processor.image_processor.size = REAL_BOUNDS
    builder = create_continuous_token_builder(
        processor.tokenizer,
        hf_model_type=request.param.removesuffix("_thinking"),
        processor=processor,
    )
    return Family(folder, processor, builder)


def scene(width: int, height: int) -> EncodedImage:
    """Something other than one colour, so that resizing leaves its traces."""
    rows = Image.linear_gradient("L").resize((width, height))
    columns = rows.transpose(Image.Transpose.ROTATE_90).resize((width, height))
    buffer = io.BytesIO()
    Image.merge("RGB", (rows, columns, Image.new("L", (width, height), 90))).save(buffer, "PNG")
    return EncodedImage(buffer.getvalue())


@given(width=st.integers(32, 700), height=st.integers(32, 700))
@settings(max_examples=25, deadline=None)
def test_the_processor_makes_the_same_of_our_image_as_of_the_original(
    family: Family, width: int, height: int
) -> None:
    processor = family.processor.image_processor
    original = scene(width, height)
    ours = model_image(original, image_bounds(processor, {}))
    for_ours = processor(images=[ours], return_tensors="pt")
    for_original = processor(images=[original.pil()], return_tensors="pt")

    factor = processor.patch_size * processor.merge_size
    assert ours.width % factor == ours.height % factor == 0
    assert torch.equal(for_ours["image_grid_thw"], for_original["image_grid_thw"])
    assert torch.equal(for_ours["pixel_values"], for_original["pixel_values"])


def test_overrides_of_the_recipe_bound_the_image(family: Family) -> None:
    processor = family.processor.image_processor
    bounds = image_bounds(processor, {"min_pixels": 64**2, "max_pixels": 256**2})
    image = model_image(scene(900, 900), bounds)
    features = processor(images=[image], min_pixels=64**2, max_pixels=256**2, return_tensors="pt")
    _, rows, columns = features["image_grid_thw"][0].tolist()
    side = processor.patch_size
    assert (columns * side, rows * side) == image.size
    assert image.width * image.height <= 256**2


texts = st.text("ab <>|\n\u00e9", max_size=12)
sizes = st.tuples(st.integers(32, 600), st.integers(32, 600))
parts = st.lists(texts | sizes, min_size=1, max_size=4)


@given(question_parts=parts, observation_parts=parts, ends=st.booleans())
@settings(max_examples=25, deadline=None)
def test_ids_without_pixels_are_those_of_verls_builder(
    family: Family, question_parts: list[Any], observation_parts: list[Any], ends: bool
) -> None:
    bounds = image_bounds(family.processor.image_processor, {})

    def message(found: list[Any]) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"type": "text", "text": part.replace("<|", "< |")}
            if isinstance(part, str)
            else {"type": "image", "image": model_image(scene(*part), bounds)}
            for part in found
        ]
        return {"role": "user", "content": content}

    asked, answered = message(question_parts), message(observation_parts)
    images = [part["image"] for part in asked["content"] if "image" in part]
    end = family.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    history = [asked, {"role": "assistant", "content": "x"}]
    light = without_pixels(family.builder)
    assert light is not family.builder
    for builder in (family.builder, light):
        prompt = builder.build_initial_tokens([asked], images=images)
        merged = builder.merge_context_tokens(
            history, [*history, answered], [*prompt, *([end] if ends else [])]
        )
        if builder is family.builder:
            expected = prompt, merged
    assert (prompt, merged) == expected


def test_a_processor_of_another_kind_keeps_verls_own_builder(family: Family) -> None:
    class Miscounting(type(family.builder)):  # type: ignore[misc]
        def render_tokens_with_mm(self, *arguments: Any, **options: Any) -> list[int]:
            ids: list[int] = super().render_tokens_with_mm(*arguments, **options)
            return ids if isinstance(self.processor, type(family.processor)) else ids[1:]

    other = Miscounting(family.processor.tokenizer, family.processor)
    assert without_pixels(other) is other


async def played(family: Family) -> TokenPolicy:
    """An episode with an image in the question and two in an observation."""
    turn = family.processor.tokenizer.encode(CODE)
    policy = make_policy(family.builder, ScriptedEngine([turn, turn]), prompt=2000)
    await policy.begin(question(scene(300, 200)))
    await policy.act()
    figures = [scene(100, 640), picture(33, 33)]
    assert await policy.observe(Observation(code_observation("out", "", figures)))
    await policy.act()
    return policy


async def test_verls_trainer_finds_a_feature_for_every_placeholder(family: Family) -> None:
    policy = await played(family)
    ids = torch.tensor([policy.stream.ids])
    worker = SimpleNamespace(
        processor=family.processor,
        tokenizer=family.processor.tokenizer,
        _get_mm_processor_kwargs=lambda audios: {},
    )
    output = SimpleNamespace(multi_modal_data={"images": policy.images}, mm_processor_kwargs=None)
    inputs = AgentLoopWorker._compute_multi_modal_inputs(worker, output, ids)
    features = (inputs["image_grid_thw"].prod(-1) // 4).sum().item()
    pads = policy.stream.ids.count(family.processor.image_token_id)
    assert pads == features

    attention = torch.ones_like(ids)
    positions = AgentLoopWorker._compute_position_ids(worker, ids, attention, dict(inputs))
    assert positions.shape == (1, 4, ids.shape[1])
    # Text before the first image counts one by one in all four rows; within an image it does not.
    first = policy.stream.ids.index(family.processor.image_token_id)
    assert torch.equal(positions[0, :, :first], torch.arange(first).expand(4, first))
    assert not torch.equal(positions[0, 1], positions[0, 2])


async def test_the_model_accepts_the_tokens_with_the_images(family: Family) -> None:
    policy = await played(family)
    ids = torch.tensor([policy.stream.ids])
    model = AutoModelForImageTextToText.from_pretrained(family.folder, attn_implementation="sdpa")
    features = family.processor.image_processor(images=policy.images, return_tensors="pt")
    kinds = (ids == family.processor.image_token_id).long()
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=kinds, **features).logits
    assert logits.shape[1] == ids.shape[1]


async def test_every_turn_is_opened_once(family: Family) -> None:
    policy = await played(family)
    text = family.processor.tokenizer.decode(policy.stream.ids)
    _, *turns = text.split("<|im_start|>assistant\n")
    assert len(turns) == 2
    for turn in turns:
        assert turn.startswith("<think>") and turn.count("<think>") == 1
        assert turn.removeprefix("<think>").lstrip("\n").startswith("Look.")


async def test_the_text_of_a_turn_begins_as_the_model_saw_it(family: Family) -> None:
    turn = family.processor.tokenizer.encode(CODE)
    policy = make_policy(family.builder, ScriptedEngine([turn]), prompt=2000)
    await policy.begin(question(scene(300, 200)))
    played_turn = await policy.act()
    assert played_turn is not None
    seen = family.processor.tokenizer.decode(policy.stream.ids)
    assert seen.endswith("<|im_start|>assistant\n" + played_turn.text)


def test_an_image_stands_where_it_was_in_the_message(family: Family) -> None:
    message = Observation(("before ", picture(), " after")).message
    bounds = image_bounds(family.processor.image_processor, {})
    chat = chat_message(message, iter([model_image(picture(), bounds)]))
    ids = without_pixels(family.builder).build_initial_tokens(
        [chat], images=[chat["content"][1]["image"]]
    )
    text = family.processor.tokenizer.decode(ids).replace("<|image_pad|>", "")
    assert "before <|vision_start|><|vision_end|> after" in text
