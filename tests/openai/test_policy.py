"""The policy over an OpenAI-compatible server, against a real server on loopback."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from PIL import Image

from deepeyes_plugins.hosts.openai import ChatClient, OpenAIPolicy, OpenAISettings
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2, PLAIN, Dialect
from deepeyes_plugins.rollout import (
    EndReason,
    InfrastructureError,
    Limits,
    Observation,
    Step,
    Task,
    rollout,
)
from deepeyes_plugins.rollout.contracts import Environment
from tests.openai.server import ChatServer, Reply

CODE = "<think>look</think>\n<code>\n```python\nprint(1)\n```\n</code>"
ANSWER = "<think>seen</think><answer>red</answer>"


def picture(colour: str = "red") -> EncodedImage:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(buffer, "JPEG")
    return EncodedImage(buffer.getvalue())


def task(*parts: str | EncodedImage) -> Task:
    prompt = Message("user", parts or (picture(), "What colour?"))
    return Task("t", (Message("system", ("Think.",)), prompt))


@asynccontextmanager
async def policy_for(
    url: str, dialect: Dialect = DEEPEYES_V2, **settings: Any
) -> AsyncIterator[OpenAIPolicy]:
    values = {"retry_wait": 0.01, "retry_wait_maximum": 0.05, "retries": 3, **settings}
    async with ChatClient(OpenAISettings(url=url, **values)) as client:
        yield OpenAIPolicy(client, dialect)


class Echo(Environment):
    """Answers every action with one text and one image."""

    dialect = DEEPEYES_V2

    def __init__(self, **limits: Any) -> None:
        self.limits = Limits(**limits)

    async def open(self, task: Task) -> None: ...

    async def step(self, action: object) -> Step:
        return Step(Observation(("It printed 1.", picture("blue"))), tool="python")

    async def close(self) -> None: ...


async def test_a_conversation_of_two_turns() -> None:
    with ChatServer.saying(CODE, ANSWER) as server:
        async with policy_for(server.url) as policy:
            trajectory = await rollout(policy, Echo(), task())

    assert trajectory.answer == "red"
    assert trajectory.end_reason is EndReason.ANSWER
    assert trajectory.assistant_turns == [CODE, ANSWER]
    assert [turn.tokens for turn in trajectory.turns] == [7, 7]

    first, second = server.requests
    assert [message["role"] for message in second["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert second["messages"][:2] == first["messages"]
    assert second["messages"][2]["content"] == CODE
    assert [part["type"] for part in second["messages"][3]["content"]] == ["text", "image_url"]


async def test_images_travel_as_the_bytes_that_they_are() -> None:
    image = picture()
    with ChatServer.saying(ANSWER) as server:
        async with policy_for(server.url) as policy:
            await policy.begin(task("Before", image, "after"))
            await policy.act()

    parts = server.requests[0]["messages"][1]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text"]
    kind, _, data = parts[1]["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert base64.b64decode(data) == image.data


async def test_the_generic_profile_sends_standard_fields_only() -> None:
    with ChatServer.saying(ANSWER) as server:
        async with policy_for(server.url) as policy:
            await policy.begin(task())
            await policy.act()

    request = server.requests[0]
    assert set(request) == {"model", "messages", "temperature", "max_tokens", "stop", "stream"}
    assert request["model"] == "tiny"
    assert request["stop"] == ["</code>", "</tool_call>"]


async def test_vllm_keeps_stop_strings_and_continues_the_opening() -> None:
    with ChatServer.saying("look</think><answer>red</answer>") as server:
        async with policy_for(server.url, profile="vllm", seed=3) as policy:
            await policy.begin(task())
            turn = await policy.act()

    assert turn is not None
    assert turn.text == "<think>look</think><answer>red</answer>"
    request = server.requests[0]
    assert request["messages"][-1] == {"role": "assistant", "content": "<think>"}
    assert request["continue_final_message"] is True
    assert request["add_generation_prompt"] is False
    assert request["include_stop_str_in_output"] is True
    assert "<|image_pad|>" in request["bad_words"]
    assert request["seed"] == 3


async def test_sglang_keeps_stop_strings_and_continues_the_opening() -> None:
    with ChatServer.saying("look</think><answer>red</answer>") as server:
        async with policy_for(server.url, profile="sglang") as policy:
            await policy.begin(task())
            await policy.act()

    request = server.requests[0]
    assert request["messages"][-1] == {"role": "assistant", "content": "<think>"}
    assert request["no_stop_trim"] is True
    assert request["continue_final_message"] is True


async def test_a_dialect_without_prefill_opens_no_message() -> None:
    with ChatServer.saying("Red.") as server:
        async with policy_for(server.url, PLAIN, profile="vllm") as policy:
            await policy.begin(task())
            turn = await policy.act()

    assert turn is not None and turn.text == "Red."
    assert server.requests[0]["messages"][-1]["role"] == "user"
    assert "continue_final_message" not in server.requests[0]


@pytest.mark.parametrize(
    ("generated", "finish_reason", "text", "expected_reason"),
    [
        # The server dropped the stop string, as OpenAI's own API does.
        (CODE.removesuffix("</code>"), "stop", CODE, "stop"),
        ('<think></think><tool_call>\n{"name": "search"}\n', "stop", None, "stop"),
        # It went on behind the tag: an engine without stop strings.
        (CODE + "\nIt prints 2.</think><answer>2</answer>", "stop", CODE, "stop"),
        (CODE + "\nIt prints", "length", CODE, "stop"),
        # Nothing is missing: thinking may name a tag, and an answer ends the episode.
        ("<think>a <code> block?</think><answer>1</answer>", "stop", None, "stop"),
        ("<think></think><answer>1</answer><code>", "stop", None, "stop"),
        # It was cut, so it is not complete.
        ("<think>x</think><code>\n```python\nprint(", "length", None, "length"),
        # The model spelled control tokens, for which the server would take them the next time.
        ("<think>x <|image_pad|></think><answer>1</answer>", "stop", "<think>x ", "stop"),
        ("<think>x<|im_start|><|vision_start|>", "length", "<think>x", "stop"),
        (CODE + "<|image_pad|>", "stop", CODE, "stop"),
        # It did not open its turn.
        ("look</think><answer>1</answer>", "stop", "<think>look</think><answer>1</answer>", "stop"),
        ("\n<think>a</think>b", "stop", "<think>a</think>b", "stop"),
    ],
)
async def test_turns_have_one_form_whatever_the_server_does(
    generated: str, finish_reason: str, text: str | None, expected_reason: str
) -> None:
    if text is None:
        text = generated + ("</tool_call>" if "<tool_call>" in generated else "")
    with ChatServer.saying(Reply(generated, finish_reason)) as server:
        async with policy_for(server.url) as policy:
            await policy.begin(task())
            turn = await policy.act()

    assert turn is not None
    assert turn.text == text
    assert turn.finish_reason == expected_reason


async def test_without_stop_strings_a_missing_tag_is_the_models_mistake() -> None:
    unclosed = CODE.removesuffix("</code>")
    with ChatServer.saying(CODE + "\nIt prints 2.", unclosed) as server:
        async with policy_for(server.url, send_stop=False) as policy:
            await policy.begin(task())
            turns = [await policy.act(), await policy.act()]

    assert [turn and turn.text for turn in turns] == [CODE, unclosed]
    assert "stop" not in server.requests[0]


async def test_reasoning_that_the_server_splits_off_is_put_back() -> None:
    reply = Reply("<answer>red</answer>", message={"reasoning_content": "look"})
    with ChatServer.saying(reply) as server:
        async with policy_for(server.url) as policy:
            await policy.begin(task())
            turn = await policy.act()

    assert turn is not None
    assert turn.text == "<think>look</think><answer>red</answer>"


@pytest.mark.parametrize(
    "trouble",
    [
        Reply(status=500, body="overloaded"),
        Reply(status=503),
        Reply(status=429, headers={"Retry-After": "0.02"}),
        Reply(status=408),
        Reply(body="<html>gateway</html>"),
        Reply(body="{}"),
        Reply(finish_reason="abort"),
    ],
    ids=["500", "503", "429", "408", "garbage", "empty", "aborted"],
)
async def test_passing_trouble_costs_a_retry_not_the_trajectory(trouble: Reply) -> None:
    with ChatServer.saying(trouble, trouble, ANSWER) as server:
        async with policy_for(server.url) as policy:
            trajectory = await rollout(policy, Echo(), task())

    assert trajectory.answer == "red"
    assert len(server.requests) == 3


async def test_trouble_that_stays_is_an_infrastructure_error_with_its_reason() -> None:
    with ChatServer(lambda body: Reply(status=500, body="out of memory")) as server:
        async with policy_for(server.url) as policy:
            trajectory = await rollout(policy, Echo(), task())

    assert trajectory.end_reason is EndReason.INFRASTRUCTURE
    assert trajectory.error is not None
    assert f"POST {server.url}/chat/completions failed in 4 attempts" in trajectory.error
    assert "HTTP 500: out of memory" in trajectory.error
    assert len(server.requests) == 4


async def test_a_refusal_is_not_tried_again() -> None:
    reply = Reply(status=404, body="no such model")
    with ChatServer(lambda body: reply) as server:
        async with policy_for(server.url, model="other") as policy:
            await policy.begin(task())
            with pytest.raises(InfrastructureError, match="HTTP 404: no such model"):
                await policy.act()

    assert len(server.requests) == 1
    assert server.requests[0]["model"] == "other"


async def test_a_server_that_hangs_times_out() -> None:
    release = threading.Event()
    with ChatServer(lambda body: Reply(until=release)) as server:
        async with policy_for(server.url, timeout=0.1, retries=1) as policy:
            await policy.begin(task())
            with pytest.raises(InfrastructureError, match="ReadTimeout"):
                await policy.act()
        release.set()


async def test_a_server_that_is_not_there_is_named() -> None:
    with ChatServer.saying() as server:
        gone = server.url
    async with ChatClient(OpenAISettings(url=gone, model="m", retries=0)) as client:
        with pytest.raises(InfrastructureError, match=gone):
            await client.check()


VLLM_0_24 = "This model's maximum context length is 4096 tokens. However, you requested "
REDUCE = "Please reduce the length of the input prompt or the number of requested output tokens. "
SGLANG = "Requested token count exceeds the model's maximum context length of 4096 tokens. "

# Refusals of 20,480 tokens where there is room for fewer, and the limit of the next request:
# `None` (no limit) where the message does not say how long the prompt is.
NO_SUCH_ROOM: dict[str, tuple[str, int | None]] = {
    "vLLM 0.24.0, more than the context": (
        "max_tokens=20480 cannot be greater than max_model_len=max_total_tokens=4096. Please "
        "request fewer output tokens. (parameter=max_tokens, value=20480)",
        None,
    ),
    "vLLM 0.24.0, the prompt was cut": (
        f"{VLLM_0_24}3500 output tokens and your prompt contains at least 597 input tokens, for a "
        f"total of at least 4097 tokens. {REDUCE}(parameter=input_tokens, value=597)",
        None,
    ),
    "vLLM 0.24.0, counted in characters": (
        f"{VLLM_0_24}4090 output tokens and your prompt contains 154 characters (more than 120 "
        f"characters, which is the upper bound for 6 input tokens). {REDUCE}(parameter=input_text, "
        "value=154)",
        None,
    ),
    "vLLM 0.24.0, the prompt was counted": (
        f"{VLLM_0_24}3500 output tokens and your prompt contains 1000 input tokens, for a total of "
        f"4500 tokens. {REDUCE}(parameter=input_tokens, value=1000)",
        3096,
    ),
    "vLLM 0.10 to 0.13": (
        "'max_tokens' or 'max_completion_tokens' is too large: 20480. This model's maximum context "
        "length is 32768 tokens and your request has 20000 input tokens (20480 > 32768 - 20000).",
        12768,
    ),
    "vLLM before 0.10, OpenAI": (
        "This model's maximum context length is 4096 tokens. However, you requested 21292 tokens "
        "(812 in the messages, 20480 in the completion). Please reduce the length of the messages "
        "or completion.",
        3284,
    ),
    "SGLang 0.5.12, more than the context": (
        "max_completion_tokens is too large: 20480.This model supports at most 4096 completion "
        "tokens.",
        None,
    ),
    "SGLang 0.5.12, more than the room": (
        f"{SGLANG}You requested a total of 4912 tokens: 912 tokens from the input messages and "
        "4000 tokens for the completion. Please reduce the number of tokens in the input messages "
        "or the completion to fit within the limit.",
        3184,
    ),
    "OpenAI": (
        "max_tokens is too large: 20480. This model supports at most 16384 completion tokens, "
        "whereas you provided 20480.",
        None,
    ),
}
# Refusals of prompts, whatever the limit.
NO_ROOM = {
    "vLLM 0.24.0": "Input length (4097) exceeds model's maximum context length (4096).",
    "vLLM 0.24.0, exactly full": "The decoder prompt (length 4096) plus the number of requested "
    "output tokens (at least 1) is longer than the maximum model length of 4096. Make sure that "
    "`max_model_len` is no smaller than the number of text tokens (prompt + requested output "
    "tokens).",
    "vLLM 0.10": "This model's maximum context length is 4096 tokens. However, your request has "
    "5000 input tokens. Please reduce the length of the input messages.",
    "SGLang 0.5.12": "The input (5000 tokens) is longer than the model's context length (4096 "
    "tokens).",
    "SGLang, its scheduler": "Input length (5000 tokens) exceeds the maximum allowed length "
    "(4090 tokens). Use a shorter input or enable --allow-auto-truncate.",
}


def refusal(message: str) -> Reply:
    """As vLLM sends it; SGLang leaves out the envelope."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    return Reply(status=400, body=json.dumps({"error": error}))


@pytest.mark.parametrize(("message", "room"), NO_SUCH_ROOM.values(), ids=NO_SUCH_ROOM.keys())
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_beyond_the_context_becomes_the_room_that_is_left(
    message: str, room: int | None, field: str
) -> None:
    limit: dict[str, Any] = {"max_tokens": 20480}
    if field != "max_tokens":
        limit = {"max_tokens": None, "extra_body": {field: 20480}}
    with ChatServer.saying(refusal(message), ANSWER) as server:
        async with policy_for(server.url, **limit) as policy:
            trajectory = await rollout(policy, Echo(), task())

    assert (trajectory.answer, trajectory.end_reason) == ("red", EndReason.ANSWER)
    first, second = server.requests
    assert first[field] == 20480
    assert second.get("max_tokens") == room and "max_completion_tokens" not in second
    assert second["messages"] == first["messages"]


@pytest.mark.parametrize("message", NO_ROOM.values(), ids=NO_ROOM.keys())
async def test_a_conversation_beyond_the_context_ends_for_want_of_tokens(message: str) -> None:
    with ChatServer.saying(CODE, refusal(message)) as server:
        async with policy_for(server.url) as policy:
            trajectory = await rollout(policy, Echo(), task())

    assert trajectory.end_reason is EndReason.TOKENS
    assert trajectory.assistant_turns == [CODE]


async def test_a_limit_is_lowered_once() -> None:
    refused = refusal(NO_SUCH_ROOM["vLLM 0.24.0, the prompt was cut"][0])
    with ChatServer.saying(CODE, refused, refused) as server:
        async with policy_for(server.url) as policy:
            trajectory = await rollout(policy, Echo(), task())

    assert trajectory.end_reason is EndReason.TOKENS
    assert len(server.requests) == 3


async def test_the_token_budget_is_shared_by_the_turns() -> None:
    replies = [Reply(CODE, total_tokens=150), Reply(CODE, total_tokens=260)]
    with ChatServer.saying(*replies) as server:
        async with policy_for(server.url, max_tokens=100, max_total_tokens=200) as policy:
            trajectory = await rollout(policy, Echo(), task())

    assert trajectory.end_reason is EndReason.TOKENS
    assert [request["max_tokens"] for request in server.requests] == [100, 50]
    written = trajectory.turns[0]
    assert written.tokens + written.prompt_tokens == 150


async def test_conversations_are_shared_out_and_stay_on_their_server() -> None:
    servers = [ChatServer.saying(CODE, ANSWER), ChatServer.saying(CODE, ANSWER)]
    with servers[0] as one, servers[1] as two:
        settings = OpenAISettings(url=f"{one.url}, {two.url}")
        async with ChatClient(settings) as client:
            for _ in range(2):
                policy = OpenAIPolicy(client, DEEPEYES_V2)
                trajectory = await rollout(policy, Echo(), task())
                assert trajectory.answer == "red"

    assert [len(server.requests) for server in servers] == [2, 2]


async def test_several_models_ask_for_a_choice() -> None:
    with ChatServer(lambda body: Reply(), models=("base", "lora")) as server:
        async with ChatClient(OpenAISettings(url=server.url)) as client:
            with pytest.raises(InfrastructureError, match=r"2 models \(base, lora\)"):
                await client.check()


async def test_the_key_is_sent_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    with ChatServer.saying(ANSWER) as server:
        async with policy_for(server.url, api_key_env="MY_KEY") as policy:
            await policy.begin(task())
            await policy.act()

    assert server.headers[0]["authorization"] == "Bearer secret"


async def test_an_unreadable_image_is_no_wrong_answer() -> None:
    with ChatServer.saying() as server:
        async with policy_for(server.url) as policy:
            trajectory = await rollout(policy, Echo(), task(EncodedImage(b"junk"), "?"))

    assert trajectory.end_reason is EndReason.INFRASTRUCTURE
    assert trajectory.error is not None and "not a readable image" in trajectory.error


async def test_lone_surrogates_do_not_reach_the_server() -> None:
    with ChatServer.saying(ANSWER) as server:
        async with policy_for(server.url) as policy:
            await policy.begin(task("printed \ud800"))
            await policy.act()

    assert server.requests[0]["messages"][1]["content"] == "printed \ufffd"


TOKENS = "<|image_pad|> <|vision_start|> <|im_end|> <|im_start|> <image> <video>"
TEXT = "< |image_pad|> < |vision_start|> < |im_end|> < |im_start|> < image> < video>"


async def test_what_a_data_set_spells_reaches_the_server_as_text() -> None:
    prompt = (
        Message("system", (f"Never say {TOKENS}.",)),
        Message("user", ("One of ", TOKENS)),
        Message("assistant", (f"You mean {TOKENS}",)),
        Message("user", (picture(), "Options:\nA. <|im", "age_pad|>\nB. <|im_end|>")),
    )
    own = "<think>I see <image> here.</think>\n<code>\n```python\nprint('<video>')\n```\n</code>"
    with ChatServer.saying(own, ANSWER) as server:
        async with policy_for(server.url) as policy:
            await rollout(policy, Echo(), Task("t", prompt))
        sent = server.requests[-1]["messages"]

    assert [message["content"] for message in sent[:3]] == [
        f"Never say {TEXT}.",
        f"One of {TEXT}",
        f"You mean {TEXT}",
    ]
    kinds = [part["type"] for part in sent[3]["content"]]
    texts = "".join(part.get("text", "") for part in sent[3]["content"])
    assert (kinds.count("image_url"), texts) == (1, "Options:\nA. < |image_pad|>\nB. < |im_end|>")
    assert sent[4]["content"] == own
