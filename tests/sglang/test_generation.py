"""What SGLang's real server generates for our policy with the profile ``sglang``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepeyes_plugins.hosts.openai import ChatClient, OpenAIPolicy, OpenAISettings
from deepeyes_plugins.protocol.content import Message
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2, TURN_END, Dialect
from deepeyes_plugins.quickstart.task import answer_turn, crop_turn
from deepeyes_plugins.remote.chat import ChatEndpoint, Completion
from deepeyes_plugins.rollout import InfrastructureError, Observation, Task
from tests.sglang.conftest import CONTEXT, MOST_IMAGES, most_likely, serve
from tests.verl.conftest import picture
from tests.vllm.test_generation import always, conversation
from tests.vllm.test_same_prompt import CONVERSATIONS, processed


@pytest.fixture(scope="module")
def url(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(exported, tmp_path_factory.mktemp("server") / "log") as url:
        yield f"{url}/v1"


@asynccontextmanager
async def client(url: str, **settings: Any) -> AsyncIterator[ChatClient]:
    values = {"profile": "sglang", "max_tokens": 12, "retries": 1, **settings}
    async with ChatClient(OpenAISettings(url=url, **values)) as opened:
        yield opened


async def test_a_stop_string_is_kept_and_may_end_inside_a_token(url: str, processor: Any) -> None:
    async with client(url, extra_body=always(processor, " colour")) as opened:
        dialect = Dialect(prefill="<think>", stop=("colour col",))
        turn = await (await conversation(opened, "x", dialect=dialect)).act()
    assert turn is not None
    assert turn.text == "<think> colour col"
    assert turn.finish_reason == "stop"
    assert turn.tokens == 2


async def test_stop_strings_that_are_not_sent_still_end_the_turn(url: str, processor: Any) -> None:
    async with client(url, send_stop=False, extra_body=always(processor, "</tool_call>")) as opened:
        turn = await (await conversation(opened, "x")).act()
    assert turn is not None
    assert turn.text == "<think></tool_call>"
    assert (turn.finish_reason, turn.tokens) == ("stop", 12)


@pytest.mark.parametrize("token", [*DEEPEYES_V2.forbidden, TURN_END])
async def test_a_control_token_ends_the_turn_and_is_not_part_of_it(
    url: str, processor: Any, token: str
) -> None:
    async with client(url, extra_body=always(processor, token)) as opened:
        turn = await (await conversation(opened, picture(), "x")).act()
    assert turn is not None
    assert (turn.text, turn.finish_reason) == ("<think>", "stop")


async def test_sixteen_conversations_at_once_are_answered_as_one_alone(url: str) -> None:
    texts = [f"What colour is the dot in the frame? {number}" for number in range(16)]
    images = [picture(40 + number, 64) for number in range(16)]
    async with client(url, max_tokens=40) as opened:
        policies = [await conversation(opened, *one) for one in zip(images, texts, strict=True)]
        together = await asyncio.gather(*(policy.act() for policy in policies))
        for number in (0, 7, 15):
            alone = await conversation(opened, images[number], texts[number])
            assert await alone.act() == together[number]


@pytest.mark.parametrize("limit", [400, CONTEXT, 20_480, None])
async def test_the_last_room_of_the_context_is_used_and_then_the_conversation_ends(
    url: str, processor: Any, limit: int | None
) -> None:
    words = " top left" * ((CONTEXT - 100) // 2)
    async with client(url, max_tokens=limit, extra_body=always(processor, " colour")) as opened:
        policy = await conversation(opened, words)
        turn = await policy.act()
        assert turn is not None
        assert turn.finish_reason == "length"
        # SGLang leaves some tokens of the context free.
        assert CONTEXT - 4 <= turn.prompt_tokens + turn.tokens <= CONTEXT
        assert await policy.act() is None


async def test_too_many_images_are_refused_with_the_servers_reason(url: str) -> None:
    async with client(url) as opened:
        assert await (await conversation(opened, *[picture()] * MOST_IMAGES, "x")).act()
        policy = await conversation(opened, *[picture()] * (MOST_IMAGES + 1), "x")
        with pytest.raises(InfrastructureError, match=rf"{MOST_IMAGES + 1}.*{MOST_IMAGES}"):
            await policy.act()


async def test_a_wrong_field_is_refused_with_the_servers_reason(url: str) -> None:
    async with client(url, extra_body={"temperature": -1}) as opened:
        policy = await conversation(opened, "x")
        with pytest.raises(InfrastructureError, match=r"HTTP 400.*must be non-negative"):
            await policy.act()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (2000, 10), (6000, 31)])
async def test_images_of_extreme_shapes_are_seen(url: str, size: tuple[int, int]) -> None:
    async with client(url) as opened:
        turn = await (await conversation(opened, "Look: ", picture(*size))).act()
    assert turn is not None
    assert turn.tokens > 0


class ScriptedClient(ChatClient):
    """Lets the real server generate one token of each turn, and answers from a script."""

    def __init__(self, url: str, turns: Iterable[str]) -> None:
        super().__init__(OpenAISettings(url=url, profile="sglang"))
        self._turns = iter(turns)
        self.generated: list[tuple[int, float]] = []

    async def complete(
        self, server: ChatEndpoint, messages: Iterable[bytes], fields: Mapping[str, Any]
    ) -> Completion:
        body = {**fields, "model": await self.model(), "messages": list(map(json.loads, messages))}
        body |= {"max_tokens": 1, "logprobs": True}
        async with httpx.AsyncClient(timeout=60) as http:
            reply = await http.post(f"{server.url}/chat/completions", json=body)
        payload = reply.raise_for_status().json()
        (token,) = payload["choices"][0]["logprobs"]["content"]
        prompt = payload["usage"]["prompt_tokens"]
        self.generated.append((prompt, token["logprob"]))
        return Completion(next(self._turns), "stop", 1, 1)


@pytest.mark.parametrize("name", [name for name, (images, _) in CONVERSATIONS.items() if images])
async def test_every_turn_is_read_by_the_model_as_in_training(
    url: str, processor: Any, model: Any, name: str
) -> None:
    """The same number of tokens, and the same probability of what follows, images in order."""
    images, parts = CONVERSATIONS[name]
    turns = [crop_turn(2), crop_turn(1), answer_turn("red")]
    observation = Observation(parts or ("It printed nothing.",))
    question = Message("user", (*images, "What colour is the dot in the frame?"))
    messages = [Message("system", ("Use code to zoom in, then answer.",)), question]

    async with ScriptedClient(url, turns) as client:
        policy = OpenAIPolicy(client, DEEPEYES_V2)
        await policy.begin(Task(id="1", messages=tuple(messages)))
        for _ in turns[:-1]:
            await policy.act()
            assert await policy.observe(observation)
        await policy.act()

    for turn, (length, log_probability) in zip(turns, client.generated, strict=True):
        inputs = processed(processor, messages)
        assert inputs["input_ids"].shape[1] == length
        assert log_probability == pytest.approx(most_likely(model, inputs), abs=1e-4)
        messages += [Message("assistant", (turn,)), observation.message]
