"""Chat completions of an OpenAI-compatible server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deepeyes_plugins.remote.errors import RemoteRefusedError
from deepeyes_plugins.remote.service import RemoteService, Reply
from deepeyes_plugins.remote.settings import RemoteSettings

_LIMIT_STATUSES = frozenset({400, 413, 422})
_UNAUTHORISED_STATUSES = frozenset({401, 403})
_CONTEXT_LENGTH = re.compile(r"context.?length|model length", re.IGNORECASE)


class ContextLengthError(Exception):
    """The conversation, or what was asked for beyond it, does not fit the model's context."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a server generated.

    Attributes:
        text: The assistant's text, reasoning that a server split off put back in front.
        finish_reason: ``stop`` or ``length``.
        tokens: Generated tokens; 0 where the server does not count.
        total_tokens: Tokens of the whole conversation; 0 where the server does not count.
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
        """Hold the settings; no connection is opened yet.

        Args:
            url: Base URL with its version path.
            settings: Time limits, retries and the like.
            model: Model to ask for; ``None``: the one that the server lists.
            key_env: Name of the environment variable with the API key.
            model_hint: Where a user names the model, for the error that asks for it.
        """
        super().__init__(url, settings, key_env=key_env)
        self._model = model
        self._model_hint = model_hint

    async def models(self, *, retries: int | None = None) -> list[str] | None:
        """Return the names of the server's models; ``None`` if it keeps no list.

        Args:
            retries: Instead of the settings' number.

        Raises:
            RemoteUnavailableError: It cannot be reached.
            RemoteRefusedError: It refuses the key.
        """
        return await self.call("GET", "/models", self._read_models, retries=retries)

    async def model(self, *, retries: int | None = None) -> str:
        """Return the model to ask for.

        Args:
            retries: Instead of the settings' number.

        Raises:
            RemoteUnavailableError: The server cannot be reached.
            RemoteRefusedError: The server lists none or several and none was chosen.
        """
        if self._model is None:
            # All of the first conversations ask: in turn, each would wait for a silent server.
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

        Args:
            messages: The messages as JSON, each serialised once by its owner: a conversation
                with large images is sent again with every turn.
            fields: The other fields of the request.
            retries: Instead of the settings' number.

        Raises:
            ContextLengthError: It does not fit; nothing was generated.
            RemoteUnavailableError: The server does not work at the moment.
            RemoteRefusedError: The server refuses for good.
        """
        head = json.dumps({"model": await self.model(retries=retries), **fields}).encode()
        body = b'%s, "messages": [%s]}' % (head[:-1], b", ".join(messages))
        return await self.call(
            "POST", "/chat/completions", self._read_completion, content=body, retries=retries
        )

    def _only(self, names: list[str] | None) -> str:
        if names is not None and len(names) == 1:
            return names[0]
        listed = ", ".join(names or []) or "none"
        hint = f" ({self._model_hint})" if self._model_hint else ""
        raise RemoteRefusedError(
            f"GET {self.url}/models lists {len(names or [])} models ({listed}); say which one to "
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
            raise reply.unreadable("no list of models") from error

    def _read_completion(self, reply: Reply) -> Completion:
        if reply.status in _LIMIT_STATUSES and _CONTEXT_LENGTH.search(reply.text):
            raise ContextLengthError(reply.excerpt)
        if reply.status >= 400:
            raise self.refusal(reply)
        try:
            return _parse_completion(reply.json())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise reply.unreadable(f"no chat completion ({error!r})") from error


def text_message(role: str, text: str) -> bytes:
    """Serialise a message of text only; lone surrogates, which no tokenizer takes, become ``?``."""
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
