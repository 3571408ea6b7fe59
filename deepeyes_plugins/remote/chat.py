"""Client of chat completions on OpenAI-compatible servers."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deepeyes_plugins.remote.errors import RemoteRefusedError
from deepeyes_plugins.remote.service import RemoteService, Reply
from deepeyes_plugins.remote.settings import RemoteSettings

logger = logging.getLogger(__name__)

_LIMIT_STATUSES = frozenset({400, 413, 422})
_UNAUTHORISED_STATUSES = frozenset({401, 403})
_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
"""Request fields that limit the generated tokens."""
_CONTEXT_LENGTH = re.compile(
    r"context.?(?:length|size)|model length|exceeds the maximum allowed length"
    r"|max_(?:completion_)?tokens\b.{0,40}\b(?:too large|cannot be greater than)",
    re.IGNORECASE | re.DOTALL,
)
_CONTEXT_TOKENS = re.compile(r"maximum context length (?:is|of) (\d+) tokens")
_PROMPT_TOKENS = re.compile(
    r"(?:contains |has |\(|: )(\d+) (?:input tokens|in the messages|tokens from the input messages)"
)
_PROMPT_ALONE = re.compile(r"\b(?:input|prompt)(?: length)? \((?:length )?\d+", re.IGNORECASE)
"""Beginning of error messages about a prompt that is itself longer than the context."""


class ContextLengthError(Exception):
    """Prompt and requested completion do not fit into the model's context.

    Attributes:
        room: Tokens left for a completion, 0 or less for none; ``None`` if the server does not
            report the lengths of context and prompt.
    """

    def __init__(self, message: str, room: int | None = None) -> None:
        super().__init__(message)
        self.room = room


@dataclass(frozen=True, slots=True)
class Completion:
    """Generated message.

    Attributes:
        text: The assistant's text, preceded by reasoning that the server returned separately.
        finish_reason: ``stop`` or ``length``.
        tokens: Generated tokens; 0 if the server does not count them.
        total_tokens: Tokens of the whole conversation; 0 if the server does not count them.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    total_tokens: int


class ChatEndpoint(RemoteService):
    """One model on one OpenAI-compatible server."""

    def __init__(
        self,
        url: str,
        settings: RemoteSettings,
        *,
        model: str | None = None,
        key_env: str | None = None,
        model_hint: str = "",
    ) -> None:
        """Initialise without connecting.

        Args:
            url: Base URL with its version path.
            settings: Timeouts, retries and limits.
            model: Name of the model; ``None`` for the only one that the server lists.
            key_env: Name of the environment variable of the API key.
            model_hint: Setting that names the model, for error messages.
        """
        super().__init__(url, settings, key_env=key_env)
        self._model = model
        self._model_hint = model_hint

    async def models(self, *, retries: int | None = None) -> list[str] | None:
        """Return the names of the server's models; ``None`` if it has no such endpoint.

        Args:
            retries: Number of retries, instead of the settings' number.

        Raises:
            RemoteUnavailableError: The server cannot be reached.
            RemoteRefusedError: The server rejects the key.
        """
        return await self.call("GET", "/models", self._read_models, retries=retries)

    async def model(self, *, retries: int | None = None) -> str:
        """Return the name of the model.

        Args:
            retries: Number of retries, instead of the settings' number.

        Raises:
            RemoteUnavailableError: The server cannot be reached.
            RemoteRefusedError: No model is configured, and the server does not list exactly one.
        """
        if self._model is None:
            # Without a lock: callers would time out one after the other on a silent server.
            self._model = self._only(await self.models(retries=retries))
        return self._model

    async def complete(
        self,
        messages: Iterable[bytes],
        fields: Mapping[str, Any],
        *,
        retries: int | None = None,
    ) -> Completion:
        """Generate the next message of a conversation.

        If the server refuses a token limit because its context is shorter, the limit is lowered to
        the room that is left, and the request is repeated.

        Args:
            messages: Messages as JSON, which callers serialise once, since a conversation with
                large images is sent with every turn.
            fields: Other fields of the request.
            retries: Number of retries, instead of the settings' number.

        Raises:
            ContextLengthError: The prompt does not fit into the context.
            RemoteUnavailableError: The server failed.
            RemoteRefusedError: The server refuses the request.
        """
        model, conversation = await self.model(retries=retries), b", ".join(messages)

        async def send(fields: Mapping[str, Any]) -> Completion:
            head = json.dumps({"model": model, **fields}).encode()
            body = b'%s, "messages": [%s]}' % (head[:-1], conversation)
            return await self.call(
                "POST", "/chat/completions", self._read_completion, content=body, retries=retries
            )

        try:
            return await send(fields)
        except ContextLengthError as error:
            fitting = {name: value for name, value in fields.items() if name not in _TOKEN_LIMITS}
            if len(fitting) == len(fields) or (error.room is not None and error.room < 1):
                raise
            # Without a limit, vLLM and SGLang use the room that is left.
            if error.room is not None:
                fitting["max_tokens"] = error.room
            logger.info("%s; repeating the request, limited to the room that is left", error)
        return await send(fitting)

    def _only(self, names: list[str] | None) -> str:
        if names is not None and len(names) == 1:
            return names[0]
        listed = ", ".join(names or []) or "none"
        hint = f" ({self._model_hint})" if self._model_hint else ""
        raise RemoteRefusedError(
            f"GET {self.url}/models lists {len(names or [])} models ({listed}); name the one to "
            f"use{hint}"
        )

    def _read_models(self, reply: Reply) -> list[str] | None:
        if reply.status in _UNAUTHORISED_STATUSES:
            raise self.refusal(reply)
        if reply.status >= 400:
            return None
        try:
            return [str(entry["id"]) for entry in reply.json()["data"]]
        except (LookupError, TypeError) as error:
            raise reply.unreadable("not a list of models") from error

    def _read_completion(self, reply: Reply) -> Completion:
        if reply.status in _LIMIT_STATUSES and _CONTEXT_LENGTH.search(reply.text):
            raise ContextLengthError(reply.excerpt, _room(reply.text))
        if reply.status >= 400:
            raise self.refusal(reply)
        try:
            return _parse_completion(reply.json())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise reply.unreadable(f"not a chat completion ({error!r})") from error


def _room(message: str) -> int | None:
    """Return the tokens left for a completion, if the server's message contains the lengths."""
    if _PROMPT_ALONE.search(message):
        return 0
    context, prompt = _CONTEXT_TOKENS.search(message), _PROMPT_TOKENS.search(message)
    return int(context[1]) - int(prompt[1]) if context and prompt else None


def text_message(role: str, text: str) -> bytes:
    """Serialise a text message; lone surrogates, which tokenizers reject, become ``?``."""
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return json.dumps({"role": role, "content": valid}).encode()


def _parse_completion(payload: Any) -> Completion:
    choice = payload["choices"][0]
    message = choice["message"]
    text = message.get("content") or ""
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    if not isinstance(text, str) or not isinstance(reasoning, str):
        raise TypeError("the content is not text")
    if choice.get("finish_reason") in ("abort", "error"):
        raise ValueError("the generation was aborted")
    if reasoning and "</think>" not in text:
        text = f"<think>{reasoning}</think>{text}"
    usage = payload.get("usage") or {}
    return Completion(
        text=text,
        finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
        tokens=int(usage.get("completion_tokens") or 0),
        total_tokens=int(usage.get("total_tokens") or 0),
    )
