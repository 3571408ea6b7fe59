"""What a server cannot do is named before a run, in its own words and with what mends it."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from deepeyes_plugins.hosts.openai import OpenAISettings
from deepeyes_plugins.hosts.openai.probe import Shortcoming, probe
from tests.openai.server import Body, ChatServer, Reply

Lack = Callable[[Body], str | None]


def parts_of(body: Body) -> list[dict[str, Any]]:
    content = body["messages"][0]["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Model:
    """A model that counts a token per letter and 6 per picture, and says the alphabet."""

    def __init__(self, *, joins: str = "", sees: bool = True, continues: bool = True) -> None:
        self.joins, self.sees, self.continues = joins, sees, continues

    def __call__(self, body: Body) -> Reply:
        parts = parts_of(body)
        texts = [part["text"] for part in parts if part["type"] == "text"]
        tokens = len(self.joins.join(texts)) + 6 * self.sees * (len(parts) - len(texts)) + 5
        if body["messages"][-1]["role"] == "assistant":
            tokens += len(body["messages"][-1]["content"]) + 5 * (not self.continues)
        text = "abcdefghijklmnop"
        if "logit_bias" in body and not body["bad_words"]:
            text = "<|image_pad|>"
        text = text[: body["max_tokens"]]
        ends = [text.index(stop) + len(stop) for stop in body.get("stop", ()) if stop in text]
        reason = "stop" if ends else "length"
        return Reply(text[: min(ends, default=None)], reason, total_tokens=tokens + 7)


async def found(script: Callable[[Body], Reply], **settings: Any) -> tuple[Shortcoming, ...]:
    with ChatServer(script, is_probed=True) as server:
        values = {"profile": "vllm", "retry_wait": 0, **settings}
        (report,) = await probe(OpenAISettings(url=server.url, **values))
    return report.found


async def test_nothing_is_said_of_a_server_that_does_everything() -> None:
    assert await found(Model()) == ()
    assert await found(Model(), profile="generic") == ()


REFUSALS: dict[str, tuple[Lack, str, str]] = {
    "pictures": (
        lambda body: "At most 0 images" if "image_url" in str(body) else None,
        "At most 0 images",
        "vision-language model",
    ),
    "a prefill": (
        lambda body: "cannot continue" if body.get("continue_final_message") else None,
        "cannot continue",
        "DEEPEYES_OPENAI_PREFILL=0",
    ),
    "stop strings": (
        lambda body: "stop_strings need a tokenizer" if body.get("stop") else None,
        "stop_strings need a tokenizer",
        "DEEPEYES_OPENAI_SEND_STOP=0",
    ),
    "forbidden tokens": (
        lambda body: "bad_words is too long" if body.get("bad_words") else None,
        "bad_words is too long",
        "DEEPEYES_OPENAI_PROFILE",
    ),
    "the fields of a profile": (
        lambda body: "Unexpected keys in the request" if "bad_words" in body else None,
        "Unexpected keys in the request",
        "generic (DEEPEYES_OPENAI_PROFILE)",
    ),
    "everything": (lambda body: "the model is broken", "the model is broken", "server's log"),
}


@pytest.mark.parametrize("lack", REFUSALS)
@pytest.mark.parametrize("status", [400, 500])
async def test_what_is_refused_is_said_once_in_the_servers_words(lack: str, status: int) -> None:
    refuses, words, action = REFUSALS[lack]
    model = Model()

    def script(body: Body) -> Reply:
        reason = refuses(body)
        return model(body) if reason is None else Reply(status=status, body=f'"{reason}"')

    (one,) = await found(script)

    assert one.stops
    assert one.what.count(words) == 1 and f"HTTP {status}" in one.what
    assert action in one.action


def spoiled(reply: Reply, text: str | None) -> Reply:
    return reply if text is None else Reply(text, total_tokens=reply.total_tokens)


DIFFERENCES: dict[str, tuple[Callable[[Body], Reply], str, str]] = {
    "images ahead of the text": (
        Model(joins="\n"),
        "moves images ahead of the text",
        "--chat-template-content-format openai",
    ),
    "no continued message": (Model(continues=False), "closes the prefill <think>", "PREFILL=0"),
    "stop strings that are removed": (
        lambda body: spoiled(Model()(body), "" if "a" in body.get("stop", ()) else None),
        "removes the stop string",
        "profile: generic",
    ),
    "stop strings that are ignored": (
        lambda body: Model()({**body, "stop": []}),
        "goes on after a stop string",
        "profile: generic",
    ),
    "forbidden tokens that come": (
        lambda body: Model()({**body, "bad_words": []}),
        "the forbidden token <|image_pad|>",
        "bad_words",
    ),
    "no pictures": (Model(sees=False), "the picture is lost", "vision-language"),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
async def test_what_is_done_differently_is_said(difference: str) -> None:
    script, words, action = DIFFERENCES[difference]

    (one,) = await found(script)

    assert words in one.what and action in one.action
    assert one.stops == (difference == "no pictures")


async def test_a_server_that_counts_no_tokens_is_not_accused() -> None:
    assert await found(lambda body: Reply(Model()(body).text, tokens=0, total_tokens=0)) == ()


async def test_a_wrong_port_or_model_is_one_sentence_in_seconds() -> None:
    with socket.socket() as reserved:  # Bound, but nobody listens.
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"
        started = time.monotonic()
        (report,) = await probe(OpenAISettings(url=url))
    assert time.monotonic() - started < 5
    (one,) = report.found
    assert re.search(r"/models failed: .*Connect", one.what) and "DEEPEYES_OPENAI_URL" in one.action

    (other,) = await found(Model(), model="huge")
    assert "no model 'huge'; it has: tiny" in other.what and "DEEPEYES_OPENAI_MODEL" in other.action
