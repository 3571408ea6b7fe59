"""The policy over tokens: verl's engines behind the contract of the agent core."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from deepeyes_plugins.hosts.transformers.images import image_bounds, model_image
from deepeyes_plugins.hosts.verl.tokens import TokenStream, cut_turn
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.dialect import Dialect
from deepeyes_plugins.rollout.contracts import AssistantTurn, Observation, Task

TURN_END = "<|im_end|>"
FORBIDDEN_BIAS = -100.0
"""The lowest logit bias that OpenAI-compatible engines accept."""


class GenerateOutput(Protocol):
    """What an engine returns; verl's ``TokenOutput``."""

    token_ids: list[int]
    log_probs: list[float] | None
    extra_fields: dict[str, Any]


Generate = Callable[..., Awaitable[GenerateOutput]]


class TokenBudget(BaseModel):
    """How many tokens a trajectory may take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: int = Field(ge=1, description="Longest prompt, prefill included.")
    response: int = Field(ge=1, description="Longest response, observations included.")
    turn: int = Field(ge=1, description="Longest single turn.")


class TokenPolicy:
    """Plays one trajectory on an engine that takes and gives token ids.

    Tokenisation and image work run in threads: nothing here blocks the event loop.
    """

    def __init__(
        self,
        generate: Generate,
        builder: Any,
        dialect: Dialect,
        budget: TokenBudget,
        sampling_params: Mapping[str, Any],
        engine: str,
    ) -> None:
        """Make a fresh policy.

        Args:
            generate: ``generate(prompt_ids=, sampling_params=, image_data=)``.
            builder: verl's ``ContinuousTokenBuilder`` for the model.
            dialect: How turns are opened and closed.
            budget: Token limits.
            sampling_params: Temperature and the like, as verl gives them.
            engine: Name of the rollout engine, which decides how stops are asked for.
        """
        self._generate = generate
        self._builder = builder
        self._tokenizer = builder.tokenizer
        self._processor = getattr(builder, "processor", None)
        self._dialect = dialect
        self._budget = budget
        self._sampling_params = dict(sampling_params)
        self._engine = engine
        self._forbidden = forbidden_ids(self._tokenizer, dialect.forbidden)
        self._prefill = encode(self._tokenizer, dialect.prefill) if dialect.prefill else ()
        self._turn_end = self._tokenizer.convert_tokens_to_ids(TURN_END)
        self._messages: list[dict[str, Any]] = []
        self.stream = TokenStream([], budget.response)
        self.images: list[Image.Image] = []
        self.engine_fields: dict[str, Any] = {}

    async def begin(self, task: Task) -> None:
        """Tokenise the prompt.

        Raises:
            ValueError: It has more tokens than the budget allows.
        """
        images = await asyncio.to_thread(self._model_images, task.images)
        waiting = iter(images)
        self._messages = [chat_message(message, waiting) for message in task.messages]
        ids = await asyncio.to_thread(
            self._builder.build_initial_tokens, self._messages, images=images or None
        )
        ids = [*ids, *self._prefill]
        if len(ids) > self._budget.prompt:
            raise ValueError(
                f"the prompt of task {task.id} has {len(ids)} tokens, more than "
                f"data.max_prompt_length={self._budget.prompt}: raise it, or lower the image size"
            )
        self.stream = TokenStream(ids, self._budget.response)
        self.images = images

    async def act(self) -> AssistantTurn | None:
        """Generate the next turn; ``None`` if no token fits any more."""
        limit = min(self._budget.turn, self.stream.room)
        if limit < 1:
            return None
        output = await self._generate(
            prompt_ids=self.stream.ids,
            sampling_params=self._engine_params(limit),
            image_data=list(self.images) or None,
        )
        count = await asyncio.to_thread(
            cut_turn,
            output.token_ids[:limit],
            self._decode,
            self._dialect.stop,
            self._forbidden,
        )
        ids = output.token_ids[:count]
        log_probs = None if output.log_probs is None else output.log_probs[:count]
        self.stream.append_generated(ids, log_probs)
        self._note(output.extra_fields)
        text = self._decode(ids)
        ended = count < limit or ids[-1:] == [self._turn_end] or text.endswith(self._dialect.stop)
        self._messages.append({"role": "assistant", "content": self._dialect.prefill + text})
        return AssistantTurn(
            self._dialect.prefill + text, "stop" if ended else "length", tokens=count
        )

    async def observe(self, observation: Observation) -> bool:
        """Append an observation and open the next turn, if it all fits and leaves room."""
        new_images = await asyncio.to_thread(self._model_images, observation.message.images)
        message = chat_message(observation.message, iter(new_images))
        context = await asyncio.to_thread(self._context_ids, message)
        if len(context) >= self.stream.room:
            return False
        self.stream.append_context(context)
        self._messages.append(message)
        self.images.extend(new_images)
        return True

    def _context_ids(self, message: dict[str, Any]) -> list[int]:
        runtime = self.stream.ids
        ending = [] if runtime[-1:] == [self._turn_end] else [self._turn_end]
        merged = self._builder.merge_context_tokens(
            self._messages, [*self._messages, message], runtime + ending
        )
        if merged.removed_prefix_token_count:
            raise ValueError("the chat template rewrites tokens that were already generated")
        return [*merged.token_ids[len(runtime) :], *self._prefill]

    def _model_images(self, images: tuple[EncodedImage, ...]) -> list[Image.Image]:
        if not images:
            return []
        if self._processor is None:
            raise ValueError("the task has images but the model has no image processor")
        bounds = image_bounds(
            self._processor.image_processor, getattr(self._builder, "mm_processor_kwargs", {})
        )
        return [model_image(image, bounds) for image in images]

    def _engine_params(self, limit: int) -> dict[str, Any]:
        params = {**self._sampling_params}
        if self._engine == "sglang":
            # Its token-only mode knows no stop strings; cut_turn ends the turn instead.
            bias = {str(token): FORBIDDEN_BIAS for token in self._forbidden}
            return {**params, "max_new_tokens": limit, "logit_bias": bias}
        params["max_tokens"] = limit
        params["logit_bias"] = dict.fromkeys(self._forbidden, FORBIDDEN_BIAS)
        if self._dialect.stop:
            params["stop"] = list(self._dialect.stop)
            params["include_stop_str_in_output"] = True
        return params

    def _decode(self, ids: Any) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _note(self, fields: Mapping[str, Any]) -> None:
        """Keep the engine's own fields: of the first turn, and the newest weight version."""
        for key, value in fields.items():
            if key == "max_global_steps":
                self.engine_fields[key] = value
            else:
                self.engine_fields.setdefault(key, value)


def chat_message(message: Message, images: Any) -> dict[str, Any]:
    """Translate to the chat form of transformers, taking each image from ``images``."""
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
    """Encode ``text`` alone, without special tokens added."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


@lru_cache(maxsize=64)
def forbidden_ids(tokenizer: Any, tokens: tuple[str, ...]) -> frozenset[int]:
    """Ids of those ``tokens`` that the tokenizer has as one token."""
    ids = {token: encode(tokenizer, token) for token in tokens}
    return frozenset(found[0] for found in ids.values() if len(found) == 1)
