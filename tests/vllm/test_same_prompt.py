"""One conversation, one prompt: for vLLM's server, for verl's engine and for the processor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import pytest

from deepeyes_plugins.hosts.openai import ChatClient, OpenAIPolicy, OpenAISettings
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2
from deepeyes_plugins.quickstart.task import answer_turn, crop_turn
from deepeyes_plugins.remote.chat import ChatEndpoint, Completion
from deepeyes_plugins.rollout import Observation, Task
from tests.verl.conftest import ScriptedEngine, make_policy, picture

PREFILL = DEEPEYES_V2.prefill


class RenderingClient(ChatClient):
    """Lets the real server tokenise each request, and answers from a script."""

    def __init__(self, url: str, turns: Iterable[str]) -> None:
        super().__init__(OpenAISettings(url=url, profile="vllm", max_tokens=80))
        self._turns = iter(turns)
        self.prompts: list[list[int]] = []

    async def complete(
        self, server: ChatEndpoint, messages: Iterable[bytes], fields: Mapping[str, Any]
    ) -> Completion:
        body = {**fields, "model": await self.model(), "messages": list(map(json.loads, messages))}
        async with httpx.AsyncClient(timeout=60) as http:
            reply = await http.post(f"{server.url}/chat/completions/render", json=body)
        self.prompts.append(reply.raise_for_status().json()["token_ids"])
        return Completion(next(self._turns), "stop", 1, 1)


def pictures(count: int, width: int = 64, height: int = 64) -> tuple[EncodedImage, ...]:
    colours = ("red", "green", "blue", "yellow", "black", "white", "grey")
    return tuple(picture(width, height, colour) for colour in colours[:count])


CONVERSATIONS = {
    "no image": ((), ()),
    "one image, one in the observation": (pictures(1), ("It printed 1.", *pictures(1))),
    "two images, two in the observation": (
        pictures(2),
        ("Images:\n", *pictures(2), " that is all"),
    ),
    "seven images, none in the observation": (pictures(7), ("It printed nothing.",)),
    "a thin strip": (pictures(1, 2600, 15), ("Images:\n", *pictures(1, 15, 2600))),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_every_turn_has_the_same_prompt_everywhere(
    url: str, processor: Any, builder: Any, name: str
) -> None:
    images, parts = CONVERSATIONS[name]
    turns = [crop_turn(2), crop_turn(1), answer_turn("red")]
    observation = Observation(parts or ("It printed nothing.",))
    system = Message("system", ("Use code to zoom in, then answer.",))
    question = Message("user", (*images, "What colour is the dot in the frame?"))
    task = Task(id="1", messages=(system, question))

    async with RenderingClient(url, turns) as client:
        served = OpenAIPolicy(client, DEEPEYES_V2)
        generated = [processor.tokenizer.encode(turn.removeprefix(PREFILL)) for turn in turns]
        engine = ScriptedEngine(generated)
        trained = make_policy(builder, engine)
        for policy in (served, trained):
            await policy.begin(task)
            for _ in turns[:-1]:
                await policy.act()
                assert await policy.observe(observation)
            await policy.act()

    messages: list[Message] = [system, question]
    expected = []
    for turn in turns:
        expected.append(processed(processor, messages)["input_ids"][0].tolist())
        messages += [Message("assistant", (turn,)), observation.message]
    assert client.prompts == expected
    assert [request["prompt_ids"] for request in engine.asked] == expected


def processed(processor: Any, messages: list[Message]) -> Any:
    """What the model's own template and processor make of a conversation whose turn is opened."""
    chat = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in message.parts
            ],
        }
        for message in messages
    ]
    text = processor.apply_chat_template(chat, add_generation_prompt=True) + PREFILL
    images = [image.pil() for message in messages for image in message.images]
    return processor(text=[text], images=images or None, return_tensors="pt")


def test_the_server_takes_the_template_for_one_of_content_parts(url: str, server_log: Any) -> None:
    assert url
    (log,) = server_log.glob("*.log")
    assert "content format to be 'openai'" in log.read_text(encoding="utf-8")
