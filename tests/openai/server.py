"""A real HTTP server with the OpenAI chat API, whose answers a test scripts."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deepeyes_plugins.hosts.openai.probe import QUESTION
from tests.serving import LocalServer


@dataclass(frozen=True)
class Reply:
    """One answer: a chat completion of ``text``, unless ``status`` or ``body`` say otherwise."""

    text: str = ""
    finish_reason: str = "stop"
    tokens: int = 7
    total_tokens: int = 100
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    message: dict[str, Any] = field(default_factory=dict)
    until: threading.Event | None = None

    def response(self) -> Response:
        payload = {
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": self.finish_reason,
                    "message": {"role": "assistant", "content": self.text, **self.message},
                }
            ],
            "usage": {
                "prompt_tokens": self.total_tokens - self.tokens,
                "completion_tokens": self.tokens,
                "total_tokens": self.total_tokens,
            },
        }
        body = json.dumps(payload) if self.body is None else self.body
        return Response(body, self.status, self.headers, "application/json")


Body = dict[str, Any]
Script = Callable[[Body], Reply]


class ChatServer(LocalServer):
    """Answers on a free port of loopback, in a thread, for as long as the context lasts.

    It also answers the probe that precedes a run, unless a test is about that (``is_probed``).

    Attributes:
        url: Base URL, with /v1.
        requests: Bodies of the chat requests so far, in order of arrival.
        headers: Their headers.
    """

    def __init__(
        self,
        script: Script,
        models: tuple[str, ...] = ("tiny",),
        port: int = 0,
        *,
        is_probed: bool = False,
    ) -> None:
        self._is_probed = is_probed
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self._script = script
        self._models = models
        super().__init__(
            Route("/v1/models", self._list_models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            port=port,
        )
        self.url = f"{self.root}/v1"

    @classmethod
    def saying(cls, *replies: Reply | str) -> Self:
        """A server that gives these answers in turn."""
        rest = iter([Reply(reply) if isinstance(reply, str) else reply for reply in replies])
        return cls(lambda body: next(rest))

    async def _list_models(self, request: Request) -> Response:
        listed = [{"id": name, "object": "model"} for name in self._models]
        return Response(json.dumps({"object": "list", "data": listed}))

    async def _tokenize(self, request: Request) -> Response:
        body = await request.json()
        return Response(json.dumps({"tokens": [7]}), 200 if "prompt" in body else 404)

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        if not self._is_probed and question(body).startswith(QUESTION):
            return Reply("b" if body.get("bad_words") else "a").response()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        reply = self._script(body)
        if reply.until is not None:
            await asyncio.to_thread(reply.until.wait)
        return reply.response()


def question(body: Body) -> str:
    """The text of a conversation's first user message."""
    first = next(message for message in body["messages"] if message["role"] == "user")
    return text_of(first["content"])


def text_of(content: str | list[dict[str, Any]]) -> str:
    """The text of a message's content; images left out."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def agent_script(answers: dict[str, str]) -> Script:
    """A DeepEyes agent: it looks at the image's first pixel in the sandbox, then answers.

    Args:
        answers: Answer by a word of the question; ``{stdout}`` stands for what the code printed.
    """
    code = (
        "import matplotlib.pyplot as plt\n"
        "print(image_1.convert('RGB').getpixel((0, 0)))\n"
        "plt.imshow(image_1)\n"
        "plt.show()"
    )

    def script(body: Body) -> Reply:
        last = body["messages"][-1]
        observation = text_of(last["content"])
        if not observation.startswith("Code execution result:"):
            # Stopped at </code>, which it does not return.
            return Reply(f"<think>look</think>\n<code>\n```python\n{code}\n```\n")
        asked = question(body)
        stdout = observation.split("```")[1].strip()
        answer = next(value for word, value in answers.items() if word in asked)
        return Reply(f"<think>seen</think><answer>{answer.format(stdout=stdout)}</answer>")

    return script
