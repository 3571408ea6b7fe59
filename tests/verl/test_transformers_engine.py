"""The rollout engine for machines without a GPU: batches, stops, and its log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient

from deepeyes_plugins.hosts.transformers.images import ImageBounds, model_image
from deepeyes_plugins.hosts.verl.policy import TokenBudget, TokenPolicy
from deepeyes_plugins.hosts.verl_cpu.activation import ENGINE
from deepeyes_plugins.hosts.verl_cpu.rollout import TransformersServer
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2
from tests.verl.conftest import picture, question

RECIPE = Path(__file__).parents[2] / "recipes/tiny"


@pytest_asyncio.fixture
async def engine(tiny_model: Path) -> AsyncIterator[TransformersServer]:
    with initialize_config_dir(str(RECIPE), version_base=None):
        config = compose(
            "rl", overrides=[f"actor_rollout_ref.model.path={tiny_model}"]
        ).actor_rollout_ref
    server = TransformersServer(config.rollout, config.model, replica_rank=0)
    await server.launch()
    yield server
    await server.stop()


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


class Balancer:
    """The part of verl's load balancer that its client asks, for one engine in this process."""

    def __init__(self, engine: TransformersServer) -> None:
        async def no_fields() -> list[str]:
            return []

        async def acquire(request_id: str) -> tuple[str, Any]:
            return "server", SimpleNamespace(generate=Remote(engine.generate))

        self.require_acquire_fields = self.require_release_fields = Remote(no_fields)
        self.acquire_server = Remote(acquire)
        self.release_server = Remote(lambda server_id: None)


@dataclass
class Remote:
    """A method as Ray offers it."""

    remote: Any


@pytest_asyncio.fixture
async def generating(engine: TransformersServer, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Is set when a call has begun to generate."""
    begun, loop, run = asyncio.Event(), asyncio.get_running_loop(), engine._run

    def watched(batch: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        return run(batch)

    monkeypatch.setattr(engine, "_run", watched)
    return begun


class TestWhenTheTrainerStopsTheEngine:
    LONG = {**PARAMS, "max_tokens": 400}

    async def test_what_was_generated_comes_back(
        self, engine: Any, processor: Any, generating: asyncio.Event
    ) -> None:
        request = asyncio.ensure_future(engine.generate(prompt(processor, "x"), self.LONG, "1"))
        await generating.wait()
        await engine.abort_all_requests()
        output = await request
        assert output.stop_reason == "aborted"
        assert 0 < len(output.token_ids) < 400
        assert len(output.log_probs) == len(output.token_ids)

    async def test_what_arrives_meanwhile_waits(self, engine: Any, processor: Any) -> None:
        await engine.abort_all_requests()
        request = asyncio.ensure_future(engine.generate(prompt(processor, "x"), PARAMS, "1"))
        assert not (await asyncio.wait([request], timeout=0.1))[0]
        await engine.resume_generation()
        assert (await request).stop_reason == "completed"

    async def test_or_is_sent_elsewhere_if_the_engine_does_not_resume_soon(
        self, engine: Any, processor: Any
    ) -> None:
        await engine.abort_all_requests()
        waiting = asyncio.ensure_future(engine.generate(prompt(processor, "x"), PARAMS, "1"))
        await asyncio.sleep(0)
        await engine.abort_all_requests(reject_request=True)
        later = await engine.generate(prompt(processor, "x"), PARAMS, "2")
        for output in (await waiting, later):
            assert (output.token_ids, output.stop_reason) == ([], "aborted")

    async def test_the_policy_sees_one_turn_of_two_weight_versions(
        self, engine: Any, processor: Any, builder: Any, generating: asyncio.Event
    ) -> None:
        """verl's client goes on with the tokens that there are; nothing is said twice."""
        client = FullyAsyncLLMServerClient(
            OmegaConf.create({"actor_rollout_ref": {"rollout": {"name": ENGINE}}})
        )
        client._load_balancer = Balancer(engine)
        policy = TokenPolicy(
            partial(client.generate, request_id="1"),
            builder,
            DEEPEYES_V2,
            TokenBudget(prompt=500, response=300, turn=200),
            {"temperature": 1.0},
            engine=ENGINE,
        )
        await engine.load_weights([], global_steps=4)
        await policy.begin(question(picture()))
        turn = asyncio.ensure_future(policy.act())
        begun = asyncio.ensure_future(generating.wait())
        await asyncio.wait([turn, begun], return_when=asyncio.FIRST_COMPLETED)
        assert not turn.done(), await turn
        await engine.abort_all_requests()
        await engine.load_weights([], global_steps=5)
        generating.clear()
        await engine.resume_generation()
        first = await turn
        assert first is not None and 0 < first.tokens <= 200
        assert generating.is_set()
        stream = policy.stream
        assert stream.response_mask == [1] * first.tokens
        assert len(stream.log_probs or ()) == first.tokens
        versions = {
            key: policy.engine_fields[key] for key in ("min_global_steps", "max_global_steps")
        }
        assert versions == {"min_global_steps": 4, "max_global_steps": 5}
