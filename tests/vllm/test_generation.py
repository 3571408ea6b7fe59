"""What vLLM's real server generates for our policy."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForImageTextToText

from deepeyes_plugins.hosts.openai import ChatClient, OpenAIPolicy, OpenAISettings
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2, Dialect
from deepeyes_plugins.rollout import InfrastructureError, Task
from tests.verl.conftest import picture

CONTEXT = 4096
"""Tokens, recipes/tiny/serve.yaml."""
MOST_IMAGES = 8


@asynccontextmanager
async def client(url: str, **settings: Any) -> AsyncIterator[ChatClient]:
    values = {"profile": "vllm", "max_tokens": 12, "retries": 1, **settings}
    async with ChatClient(OpenAISettings(url=url, **values)) as opened:
        yield opened


async def conversation(
    client: ChatClient, *parts: EncodedImage | str, dialect: Dialect = DEEPEYES_V2
) -> OpenAIPolicy:
    policy = OpenAIPolicy(client, dialect)
    await policy.begin(Task(id="1", messages=(Message("user", parts),)))
    return policy


def always(processor: Any, word: str) -> dict[str, Any]:
    """A bias with which the model says nothing but ``word``."""
    (token,) = processor.tokenizer.encode(word)
    return {"logit_bias": {str(token): 100.0}}


async def test_a_stop_string_may_end_inside_a_token(url: str, processor: Any) -> None:
    async with client(url, extra_body=always(processor, " colour")) as opened:
        dialect = Dialect(prefill="<think>", stop=("colour col",))
        turn = await (await conversation(opened, "x", dialect=dialect)).act()
    assert turn is not None
    assert turn.text == "<think> colour col"
    assert turn.finish_reason == "stop"
    assert turn.tokens == 2


@pytest.mark.parametrize("token", DEEPEYES_V2.forbidden)
async def test_a_forbidden_token_does_not_come_whatever_the_model_wants(
    url: str, processor: Any, token: str
) -> None:
    async with client(url, extra_body=always(processor, token)) as opened:
        turn = await (await conversation(opened, picture(), "x")).act()
    assert turn is not None
    assert token not in turn.text
    assert turn.tokens > 0


async def test_sixteen_conversations_at_once_are_answered_as_one_alone(url: str) -> None:
    texts = [f"What colour is the dot in the frame? {number}" for number in range(16)]
    images = [picture(40 + number, 64) for number in range(16)]
    async with client(url, max_tokens=40) as opened:
        policies = [await conversation(opened, *one) for one in zip(images, texts, strict=True)]
        together = await asyncio.gather(*(policy.act() for policy in policies))
        for number in (0, 7, 15):
            alone = await conversation(opened, images[number], texts[number])
            assert await alone.act() == together[number]


@pytest.mark.parametrize("limit", [400, CONTEXT, 20_480])
async def test_the_last_room_of_the_context_is_used_and_then_the_conversation_ends(
    url: str, processor: Any, limit: int
) -> None:
    words = " top left" * ((CONTEXT - 100) // 2)
    async with client(url, max_tokens=limit, extra_body=always(processor, " colour")) as opened:
        policy = await conversation(opened, words)
        turn = await policy.act()
        assert turn is not None
        assert turn.finish_reason == "length"
        assert turn.prompt_tokens + turn.tokens == CONTEXT
        assert await policy.act() is None


async def test_too_many_images_are_refused_with_the_servers_reason(url: str) -> None:
    async with client(url) as opened:
        policy = await conversation(opened, *[picture()] * (MOST_IMAGES + 1), "x")
        with pytest.raises(InfrastructureError, match=f"At most {MOST_IMAGES} image"):
            await policy.act()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (2000, 10), (6000, 31)])
async def test_images_of_extreme_shapes_are_seen(url: str, size: tuple[int, int]) -> None:
    async with client(url) as opened:
        turn = await (await conversation(opened, "Look: ", picture(*size))).act()
    assert turn is not None
    assert turn.tokens > 0


async def test_log_probabilities_are_those_of_the_model(
    url: str, checkpoint: Path, processor: Any
) -> None:
    """Of vLLM in float32 and of transformers, which trains: the same conversation, the same ids."""
    image = picture()
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    encoded = base64.b64encode(image.data).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        {"type": "text", "text": "x"},
    ]
    async with httpx.AsyncClient(timeout=120) as http:
        models = (await http.get(f"{url}/models")).json()
        body = {
            "model": models["data"][0]["id"],
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 200,
            "temperature": 1.0,
            "logprobs": True,
            "return_token_ids": True,
        }
        reply = await http.post(f"{url}/chat/completions", json=body)
    (choice,) = reply.raise_for_status().json()["choices"]
    ids = choice["token_ids"]
    sampled = torch.tensor([one["logprob"] for one in choice["logprobs"]["content"]])

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    inputs = processor(text=[text], images=[image.pil()], return_tensors="pt")
    prompt = inputs.pop("input_ids")
    whole = torch.cat([prompt, torch.tensor([ids])], dim=1)
    with torch.no_grad():
        logits = model(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            mm_token_type_ids=(whole == model.config.image_token_id).long(),
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
        ).logits[0, prompt.shape[1] - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
    assert (sampled - expected).abs().mean() <= 1e-4
    assert len(ids) == len(sampled) > 10
