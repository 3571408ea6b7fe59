"""Policy on verl's rollout engines, on the level of token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from deepeyes_plugins.hosts.transformers.images import image_bounds
from deepeyes_plugins.hosts.verl.engines import engine_params
from deepeyes_plugins.hosts.verl.images import ModelImages, shared_images
from deepeyes_plugins.hosts.verl.placeholders import without_pixels
from deepeyes_plugins.hosts.verl.tokens import CutTurn, TokenStream, cut_turn
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.dialect import TURN_END, Dialect
from deepeyes_plugins.protocol.observations import plain
from deepeyes_plugins.rollout.contracts import (
    AssistantTurn,
    InfrastructureError,
    Observation,
    Task,
)

_ABORTED = ("abort", "aborted")
_SPECULATIVE_COUNTS = "spec_num_"
"""Prefix of verl's speculative-decoding counts, which are summed over the turns."""
_OPENING_TOKENS = 8
"""Upper limit of the tokens that a chat template writes after the assistant role."""


class GenerateOutput(Protocol):
    """Output of an engine; verl's ``TokenOutput``."""

    token_ids: list[int]
    log_probs: list[float] | None
    routed_experts: Any
    stop_reason: str | None
    num_preempted: int | None
    extra_fields: dict[str, Any]


Generate = Callable[..., Awaitable[GenerateOutput]]


class TokenBudget(BaseModel):
    """Token limits of a trajectory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: int = Field(ge=1, description="Maximum prompt length, including the prefill.")
    response: int = Field(ge=1, description="Maximum response length, including observations.")
    turn: int = Field(ge=1, description="Maximum length of a turn.")


class TokenPolicy:
    """Policy of one trajectory on an engine that takes and returns token ids.

    Tokenization and image processing run in threads and do not block the event loop.

    Attributes:
        stream: Token ids, masks and log-probabilities.
        images: All resized images so far, in the order of their placeholders.
        routed_experts: Recorded expert routing of a mixture-of-experts model, of shape
            ``(tokens, layers, experts per token)``; ``None`` without router replay.
        num_preempted: Number of preemptions by the engine; ``None`` if unknown.
        engine_fields: Further fields that the engine returned.
    """

    def __init__(
        self,
        generate: Generate,
        builder: Any,
        dialect: Dialect,
        budget: TokenBudget,
        sampling_params: Mapping[str, Any],
        engine: str,
        images: ModelImages | None = None,
    ) -> None:
        """Create the policy of one trajectory.

        Args:
            generate: ``generate(prompt_ids=, sampling_params=, image_data=)``.
            builder: verl's ``ContinuousTokenBuilder`` for the model.
            dialect: How turns are opened and closed.
            budget: Token limits.
            sampling_params: verl's sampling parameters.
            engine: Name of the rollout engine, which determines the sampling parameters.
            images: Image cache; by default the one of the process.
        """
        self._generate = generate
        self._builder = builder
        self._image_work = images or shared_images()
        self._tokenizer = builder.tokenizer
        self._processor = getattr(builder, "processor", None)
        self._dialect = dialect
        self._budget = budget
        self._sampling_params = dict(sampling_params)
        self._engine = engine
        self._forbidden = single_ids(self._tokenizer, dialect.forbidden)
        self._stop_ids = single_ids(self._tokenizer, dialect.stop)
        self._prefill = encode(self._tokenizer, dialect.prefill) if dialect.prefill else ()
        self._opening = dialect.prefill
        self._turn_end = self._tokenizer.convert_tokens_to_ids(TURN_END)
        self._messages: list[dict[str, Any]] = []
        self.stream = TokenStream([], budget.response)
        self.images: list[Image.Image] = []
        self.routed_experts: Any = None
        self.num_preempted: int | None = None
        self.engine_fields: dict[str, Any] = {}

    async def begin(self, task: Task) -> None:
        """Tokenize the prompt.

        Raises:
            ValueError: The prompt has more tokens than the budget allows.
        """
        images = await self._model_images(task.images)
        waiting = iter(images)
        self._messages = [chat_message(message, waiting) for message in task.messages]
        ids = await asyncio.to_thread(self._prompt_ids, images)
        if len(ids) > self._budget.prompt:
            raise ValueError(
                f"the prompt of task {task.id} has {len(ids)} tokens, more than "
                f"data.max_prompt_length={self._budget.prompt}: raise it, or lower the image size"
            )
        self.stream = TokenStream(ids, self._budget.response)
        self.images = images

    async def act(self) -> AssistantTurn | None:
        """Generate the next turn; ``None`` if the budget is exhausted."""
        limit = min(self._budget.turn, self.stream.room)
        if limit < 1:
            return None
        output = await self._generate(
            prompt_ids=self.stream.ids,
            sampling_params=self._engine_params(limit),
            image_data=list(self.images) or None,
        )
        if output.stop_reason in _ABORTED:
            raise InfrastructureError("the engine aborted a generation")
        count, text = await asyncio.to_thread(self._cut, output.token_ids[:limit])
        self._append(output, count)
        last = self.stream.response_ids[-1] if count else None
        # The tag may end inside the last token, and the engine may have a lower limit than `limit`.
        ended = (
            any(tag in text for tag in self._dialect.stop)
            or last == self._turn_end
            or (count < limit and output.stop_reason != "length")
        )
        text = self._opening + text
        self._messages.append({"role": "assistant", "content": text})
        return AssistantTurn(text, "stop" if ended else "length", tokens=count)

    async def observe(self, observation: Observation) -> bool:
        """Append an observation and open the next turn, if both fit with room to spare."""
        new_images = await self._model_images(observation.message.images)
        message = chat_message(observation.message, iter(new_images))
        context = await asyncio.to_thread(self._context_ids, message)
        if len(context) >= self.stream.room:
            return False
        self.stream.append_context(context)
        self._messages.append(message)
        self.images.extend(new_images)
        return True

    def _prompt_ids(self, images: list[Image.Image]) -> list[int]:
        self._builder = without_pixels(self._builder)
        ids = self._builder.build_initial_tokens(self._messages, images=images or None)
        if self._prefill:
            # Templates of thinking models write the prefill themselves: do not repeat it.
            written = self._tokenizer.decode(ids[-_OPENING_TOKENS:])
            _, opened, after = written.rpartition(self._dialect.prefill)
            if opened and not after.strip():
                self._prefill, self._opening = (), opened + after
        return [*ids, *self._prefill]

    def _context_ids(self, message: dict[str, Any]) -> list[int]:
        runtime = self.stream.ids
        ending = [] if runtime[-1:] == [self._turn_end] else [self._turn_end]
        merged = self._builder.merge_context_tokens(
            self._messages, [*self._messages, message], runtime + ending
        )
        if merged.removed_prefix_token_count:
            raise ValueError("the chat template rewrites tokens that were already generated")
        return [*merged.token_ids[len(runtime) :], *self._prefill]

    async def _model_images(self, images: tuple[EncodedImage, ...]) -> list[Image.Image]:
        if not images:
            return []
        if self._processor is None:
            raise ValueError("the task has images but the model has no image processor")
        bounds = image_bounds(
            self._processor.image_processor, getattr(self._builder, "mm_processor_kwargs", {})
        )
        return await self._image_work.get(images, bounds)

    def _engine_params(self, limit: int) -> dict[str, Any]:
        return engine_params(
            self._engine,
            self._sampling_params,
            limit=limit,
            stop=self._dialect.stop,
            stop_ids=self._stop_ids,
            forbidden=self._forbidden,
        )

    def _cut(self, ids: list[int]) -> CutTurn:
        dialect = self._dialect
        return cut_turn(ids, self._decode, dialect.stop, self._forbidden, dialect.forbidden)

    def _append(self, output: GenerateOutput, count: int) -> None:
        """Append a turn with its log-probabilities and routing, all cut at the same token."""
        known = len(self.stream.prompt_ids) + len(self.stream.response_ids)
        log_probs = None if output.log_probs is None else output.log_probs[:count]
        if count and not log_probs:
            # verl's resuming client returns an empty list when no log-probs were asked for.
            log_probs = None
        self.stream.append_generated(output.token_ids[:count], log_probs)
        if output.routed_experts is not None:
            # It covers the whole sequence, so the latest one replaces earlier ones.
            self.routed_experts = output.routed_experts[: known + count]
        if output.num_preempted is not None:
            self.num_preempted = (self.num_preempted or 0) + output.num_preempted
        self._record_engine_fields(output.extra_fields)

    def _decode(self, ids: Any) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _record_engine_fields(self, fields: Mapping[str, Any]) -> None:
        """Record the engine's fields as verl's loop does.

        The first turn's value is recorded, except for the latest weight version and summed counts.
        """
        for key, value in fields.items():
            if key == "max_global_steps":
                self.engine_fields[key] = value
            elif key.startswith(_SPECULATIVE_COUNTS):
                self.engine_fields[key] = self.engine_fields.get(key, 0) + value
            else:
                self.engine_fields.setdefault(key, value)


def chat_message(message: Message, images: Any) -> dict[str, Any]:
    """Convert to the chat format of transformers, taking each image from ``images``.

    Control strings become plain text, so this must not be used for the model's own turns.
    """
    message = plain(message)
    if not message.images:
        return {"role": message.role, "content": message.text}
    content: list[dict[str, Any]] = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": next(images)}
        for part in message.parts
    ]
    return {"role": message.role, "content": content}


@lru_cache(maxsize=64)
def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Encode ``text`` without adding special tokens."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


@lru_cache(maxsize=64)
def single_ids(tokenizer: Any, texts: tuple[str, ...]) -> frozenset[int]:
    """Return the ids of those ``texts`` that are a single token."""
    ids = (encode(tokenizer, text) for text in texts)
    return frozenset(found[0] for found in ids if len(found) == 1)
