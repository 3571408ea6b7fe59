"""Policy on an OpenAI-compatible server, one request per turn."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from PIL import Image

from deepeyes_plugins.hosts.openai.client import ChatClient
from deepeyes_plugins.protocol.actions import complete_at_tag
from deepeyes_plugins.protocol.content import EncodedImage, Message, Part, encodable
from deepeyes_plugins.protocol.dialect import TURN_END, Dialect
from deepeyes_plugins.protocol.observations import plain
from deepeyes_plugins.remote.chat import Completion, ContextLengthError
from deepeyes_plugins.rollout.contracts import AssistantTurn, Observation, Task

logger = logging.getLogger(__name__)


class OpenAIPolicy:
    """One conversation on one of the client's servers.

    A turn always starts with the dialect's prefill and ends with the first closing tag, however the
    server treats prefills and stop strings.

    Attributes:
        messages: The conversation so far, each message as JSON.
    """

    def __init__(self, client: ChatClient, dialect: Dialect, *, seed: int | None = None) -> None:
        """Create the policy of one trajectory.

        Args:
            client: Client shared by the trajectories of an event loop.
            dialect: How turns are opened and closed.
            seed: Sampling seed; overrides the settings' seed.
        """
        self._client = client
        self._settings = client.settings
        self._seed = client.settings.seed if seed is None else seed
        self._dialect = dialect
        self._server = client.next_server()
        self.messages: list[bytes] = []
        self._total_tokens = 0

    async def begin(self, task: Task) -> None:
        """Set the prompt.

        Raises:
            ImageError: An image of the prompt is unreadable.
        """
        self.messages = await self._prepared(task.messages)

    async def act(self) -> AssistantTurn | None:
        """Generate the next turn; ``None`` if the token budget or the context is exhausted.

        Raises:
            InfrastructureError: The server cannot be reached, or rejects the request permanently.
        """
        limit = self._settings.max_tokens
        if self._settings.max_total_tokens is not None:
            left = self._settings.max_total_tokens - self._total_tokens
            if left <= 0:
                return None
            limit = left if limit is None else min(limit, left)
        try:
            completion = await self.complete(limit)
        except ContextLengthError as error:
            logger.warning("the conversation does not fit the model's context: %s", error)
            return None
        settings = self._settings
        strips_stop = settings.send_stop and settings.profile == "generic"
        turn = as_turn(completion, self._dialect, strips_stop=strips_stop)
        self._total_tokens = completion.total_tokens
        self.messages.append(_assistant_message(turn.text))
        return turn

    async def observe(self, observation: Observation) -> bool:
        """Append an observation; its tokens are counted by the server in the next turn."""
        self.messages += await self._prepared([observation.message])
        return True

    async def _prepared(self, messages: Sequence[Message]) -> list[bytes]:
        """Serialize messages to JSON; images are processed in a thread."""
        limit = self._settings.max_pixels
        if not any(message.images for message in messages):
            return [_serialise(message) for message in messages]
        return await asyncio.to_thread(
            lambda: [_serialise(_decodable(message, limit)) for message in messages]
        )

    async def complete(self, limit: int | None) -> Completion:
        """Request the next message, without adding it to the conversation.

        Args:
            limit: Maximum tokens; ``None`` for the server's.

        Raises:
            ContextLengthError: The conversation does not fit the context.
            InfrastructureError: The server cannot be reached, or rejects the request permanently.
        """
        messages = list(self.messages)
        if self._opens_turns:
            messages.append(_assistant_message(self._dialect.prefill))
        fields = self._fields()
        if limit is not None:
            fields = {**fields, "max_tokens": limit}
        return await self._client.complete(self._server, messages, fields)

    @property
    def _opens_turns(self) -> bool:
        return self._settings.sends_prefill and bool(self._dialect.prefill)

    def _fields(self) -> Mapping[str, Any]:
        settings, dialect = self._settings, self._dialect
        fields: dict[str, Any] = {"temperature": settings.temperature, "stream": False}
        for name, value in (("top_p", settings.top_p), ("seed", self._seed)):
            if value is not None:
                fields[name] = value
        if dialect.stop and settings.send_stop:
            fields["stop"] = list(dialect.stop)
        if settings.profile == "vllm":
            fields |= {"include_stop_str_in_output": True, "bad_words": list(dialect.forbidden)}
            if self._opens_turns:
                fields |= {"add_generation_prompt": False, "continue_final_message": True}
        elif settings.profile == "sglang":
            # SGLang forbids tokens by id only, and the tokenizer is not available here: they are
            # kept in the text, where the turn is cut.
            fields |= {"no_stop_trim": True, "skip_special_tokens": False}
            fields["separate_reasoning"] = False
            if self._opens_turns:
                fields["continue_final_message"] = True
        elif self._opens_turns:
            fields["continue_final_message"] = True
        return fields | settings.extra_body


def as_turn(completion: Completion, dialect: Dialect, *, strips_stop: bool) -> AssistantTurn:
    """Convert a completion to a turn of ``dialect``.

    Text after the first closing tag is cut, and so is text from the end of the turn or a forbidden
    token on, which the server would otherwise read as that token in the next request. A missing
    prefill is prepended.

    Args:
        completion: The server's response.
        dialect: How turns are opened and closed.
        strips_stop: The server may have removed the stop string, as OpenAI's API does; restore a
            missing closing tag.
    """
    generated = completion.text
    text = complete_at_tag(generated, dialect.stop)
    finish_reason: Literal["stop", "length"] = completion.finish_reason
    if ends := [text.index(token) for token in (*dialect.forbidden, TURN_END) if token in text]:
        text = text[: min(ends)]
        finish_reason = "stop"
    elif text.endswith(dialect.stop):
        finish_reason = "stop"
    elif finish_reason == "stop" and strips_stop:
        text += _missing_closing_tag(text, dialect.stop)
    if dialect.prefill:
        opened = text.lstrip()
        text = opened if opened.startswith(dialect.prefill) else dialect.prefill + text
    read = max(0, completion.total_tokens - completion.tokens)
    return AssistantTurn(text, finish_reason, completion.tokens, read)


def _missing_closing_tag(text: str, stop: tuple[str, ...]) -> str:
    """Return the closing tag that a finished text lacks; empty if none is missing."""
    body = text.rpartition("</think>")[2]
    if "</answer>" in body:
        return ""
    opened = {tag: body.rfind(tag.replace("</", "<", 1)) for tag in stop}
    last = max(opened, key=lambda tag: opened[tag], default="")
    return last if opened.get(last, -1) >= 0 else ""


def _decodable(message: Message, limit: int | None) -> Message:
    """Re-encode images so that every server decodes the pixels that training uses.

    Args:
        message: The message.
        limit: Maximum number of pixels; larger images are scaled down. ``None`` for no limit.
    """
    parts = (
        (part if limit is None else scaled_down(part, limit)).plain()
        if isinstance(part, EncodedImage)
        else part
        for part in message.parts
    )
    return Message(message.role, tuple(parts))


def scaled_down(image: EncodedImage, limit: int) -> EncodedImage:
    """Scale an image of more than ``limit`` pixels down, preserving its aspect ratio.

    Raises:
        ImageError: The image cannot be decoded.
    """
    width, height = image.size
    if width * height <= limit:
        return image
    scale = math.sqrt(limit / (width * height))
    size = max(1, int(width * scale)), max(1, int(height * scale))
    # Bicubic, as in the Qwen-VL processors.
    return EncodedImage.from_pil(image.pil().resize(size, Image.Resampling.BICUBIC))


def _assistant_message(text: str) -> bytes:
    """Serialize a turn of the model, without escaping control strings."""
    return json.dumps({"role": "assistant", "content": encodable(text)}).encode()


def _serialise(message: Message) -> bytes:
    """Serialize a message of a user, dataset or tool; control strings become plain text."""
    message = plain(message)
    if not message.images:
        return json.dumps({"role": message.role, "content": message.text}).encode()
    parts = b", ".join(_content_part(part) for part in message.parts if part)
    return b'{"role": "%s", "content": [%s]}' % (message.role.encode(), parts)


def _content_part(part: Part) -> bytes:
    if isinstance(part, EncodedImage):
        # Base64 needs no escaping; the JSON encoder takes five times as long.
        url = b"data:%s;base64,%s" % (part.media_type.encode(), base64.b64encode(part.data))
        return b'{"type": "image_url", "image_url": {"url": "%s"}}' % url
    return json.dumps({"type": "text", "text": part}).encode()
