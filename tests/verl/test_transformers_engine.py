"""The rollout engine for machines that vLLM does not run on: batches and log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from hydra import compose, initialize_config_dir

from deepeyes_plugins.hosts.transformers.images import ImageBounds, model_image
from deepeyes_plugins.hosts.verl_cpu.rollout import TransformersServer
from tests.verl.conftest import picture

RECIPE = Path(__file__).parents[2] / "recipes/tiny"


@pytest_asyncio.fixture
async def engine(tiny_model: Path) -> AsyncIterator[TransformersServer]:
    with initialize_config_dir(str(RECIPE), version_base=None):
        config = compose(
            "rl", overrides=[f"actor_rollout_ref.model.path={tiny_model}"]
        ).actor_rollout_ref
    server = TransformersServer(config.rollout, config.model)
    await server.launch()
    yield server
    server._serving.cancel()


def prompt(processor: Any, words: str) -> list[int]:
    text = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{words}<|im_end|>\n"
    image = model_image(picture(), ImageBounds(28, 3136, 3136))
    return list(processor(text=[text], images=[image])["input_ids"][0])


PARAMS = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "logprobs": True, "max_tokens": 12}


async def test_log_probs_are_those_of_the_model(engine: Any, processor: Any) -> None:
    image = model_image(picture(), ImageBounds(28, 3136, 3136))
    prompts = [prompt(processor, words) for words in ("a", "quite a bit longer than the other")]
    outputs = await asyncio.gather(
        *(engine.generate(ids, PARAMS, "1", image_data=[image]) for ids in prompts)
    )
    features = processor.image_processor(images=[image], return_tensors="pt")
    for ids, output in zip(prompts, outputs, strict=True):
        whole = torch.tensor([ids + output.token_ids])
        with torch.no_grad():
            logits = engine.model(
                input_ids=whole,
                attention_mask=torch.ones_like(whole),
                mm_token_type_ids=(whole == engine.model.config.image_token_id).long(),
                **features,
            ).logits[0, len(ids) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, whole[0, len(ids) :, None])[:, 0]
        assert torch.allclose(torch.tensor(output.log_probs), expected, atol=1e-4)


async def test_forbidden_tokens_are_never_generated(engine: Any, processor: Any) -> None:
    vocabulary = len(processor.tokenizer)
    allowed = processor.tokenizer.encode("a")[0]
    bias = {token: -100.0 for token in range(vocabulary) if token != allowed}
    output = await engine.generate(prompt(processor, "x"), {**PARAMS, "logit_bias": bias}, "1")
    assert set(output.token_ids) <= set(range(vocabulary, 4096)) | {allowed}


async def test_requests_with_other_settings_are_not_mixed(engine: Any, processor: Any) -> None:
    ids = prompt(processor, "x")
    greedy, short = await asyncio.gather(
        engine.generate(ids, {**PARAMS, "temperature": 0.0}, "1"),
        engine.generate(ids, {**PARAMS, "max_tokens": 3}, "2"),
    )
    assert len(greedy.token_ids) <= 12 and len(short.token_ids) <= 3


async def test_a_request_that_cannot_be_served_fails_alone(engine: Any, processor: Any) -> None:
    ids = prompt(processor, "x")
    image = model_image(picture(), ImageBounds(28, 3136, 3136))
    with pytest.raises(RuntimeError, match="generation failed"):
        await engine.generate([10**9], PARAMS, "1")
    output = await engine.generate(ids, PARAMS, "2", image_data=[image])
    assert output.token_ids


async def test_images_are_resized_within_the_bounds_of_the_request(
    engine: Any, processor: Any
) -> None:
    """Which may be wider than the model's own: it would make features for fewer placeholders."""
    bounds = {"min_pixels": 784, "max_pixels": 100_352}
    image = model_image(picture(112, 112), ImageBounds(28, *bounds.values()))
    text = "<|vision_start|><|image_pad|><|vision_end|>x"
    [ids] = processor(text=[text], images=[image], **bounds)["input_ids"]
    [own] = processor(text=[text], images=[image])["input_ids"]
    assert len(ids) > len(own)
    output = await engine.generate(ids, PARAMS, "1", image_data=[image], mm_processor_kwargs=bounds)
    assert output.token_ids


async def test_new_weights_are_used(engine: Any, processor: Any) -> None:
    image = model_image(picture(), ImageBounds(28, 3136, 3136))
    ids = prompt(processor, "x")
    greedy = {**PARAMS, "temperature": 0.0}
    before = await engine.generate(ids, greedy, "1", image_data=[image])
    name, weight = "lm_head.weight", engine.model.state_dict()["lm_head.weight"]
    await engine.load_weights([(name, weight.flip(0).clone())], global_steps=7)
    after = await engine.generate(ids, greedy, "2", image_data=[image])
    assert after.token_ids != before.token_ids
    assert after.extra_fields == {"global_steps": 7}


async def test_while_the_trainer_holds_the_engine_requests_wait(
    engine: Any, processor: Any
) -> None:
    running = asyncio.ensure_future(engine.generate(prompt(processor, "x"), PARAMS, "1"))
    while not engine._weights.locked():
        await asyncio.sleep(0)
    await engine.abort_all_requests()
    assert (await running).token_ids
    waiting = asyncio.ensure_future(engine.generate(prompt(processor, "x"), PARAMS, "2"))
    assert not (await asyncio.wait([waiting], timeout=0.1))[0]
    await engine.resume_generation()
    assert (await waiting).token_ids
