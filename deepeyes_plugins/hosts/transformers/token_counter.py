"""Count the tokens of prompts and conversations without decoding an image."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.hosts.transformers.images import image_bounds, image_tokens
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2, IMAGE_PLACEHOLDER

Chat = tuple[Sequence[tuple[str, str]], Sequence[tuple[int, int]]]
"""Role and text of turns, images as ``<image>``; width and height of these images in pixels."""


@dataclass
class ModelTokenCounter:
    """Counts as the tokenizer, chat template and image processor of a model do.

    What it was made from travels between processes; each loads its own tokenizer.

    Attributes:
        model: Folder or name on the hub.
        prompt_pixels: Most pixels of an image of a prompt, if fewer than the processor's.
        conversation_pixels: The same for an image of a conversation (``image_max_pixels``).
        prefill: What stands ahead of every answer.
    """

    model: str
    prompt_pixels: int | None = None
    conversation_pixels: int | None = 262_144
    prefill: str = DEEPEYES_V2.prefill
    _tokenizer: Any = field(default=None, repr=False, compare=False)
    _processor: Any = field(default=None, repr=False, compare=False)
    _lock: Any = field(default=None, repr=False, compare=False)

    def prompt(self, turns: Sequence[tuple[str, str]], sizes: Sequence[tuple[int, int]]) -> int:
        """Count a prompt with the beginning of the answer.

        Args:
            turns: Role and text; images stand as ``<image>``.
            sizes: Width and height of each image, in pixels.

        Raises:
            DataError: The model cannot be loaded, or takes no images and there are some.
        """
        return self._count((turns, sizes), self.prompt_pixels, self.prefill)

    def conversation(
        self, turns: Sequence[tuple[str, str]], sizes: Sequence[tuple[int, int]]
    ) -> int:
        """Count a whole conversation; arguments as in :meth:`prompt`.

        Raises:
            DataError: As in :meth:`prompt`.
        """
        return self._count((turns, sizes), self.conversation_pixels, None)

    def load(self) -> None:
        """Load the tokenizer and, if there is one, the processor.

        Raises:
            DataError: The model cannot be loaded.
        """
        if self._tokenizer is not None:
            return
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self.model)
            vision = getattr(AutoConfig.from_pretrained(self.model), "vision_config", None)
            self._processor = None if vision is None else AutoProcessor.from_pretrained(self.model)
        except Exception as error:
            raise DataError(
                f"--tokenizer {self.model}: cannot be loaded: {' '.join(str(error).split())[:500]}"
            ) from error
        self._lock = threading.Lock()

    def _count(self, chat: Chat, pixels: int | None, prefill: str | None) -> int:
        self.load()
        # A tokenizer of the tokenizers library is not to be used by several threads at once.
        with self._lock:
            (length,) = chat_lengths(
                [chat], self._tokenizer, self._processor, prefill=prefill, most_pixels=pixels
            )
        return length

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenizer": None, "_processor": None, "_lock": None}


def chat_lengths(
    chats: Sequence[Chat],
    tokenizer: Any,
    processor: Any,
    *,
    prefill: str | None,
    overrides: Mapping[str, Any] | None = None,
    most_pixels: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Count the tokens of chats as training does.

    Args:
        chats: Turns and image sizes of each.
        tokenizer: Of the model.
        processor: Of the model; ``None`` for one without images.
        prefill: What stands ahead of the answer that is asked for; ``None`` if none is.
        overrides: Of :func:`~deepeyes_plugins.hosts.transformers.images.image_bounds`.
        most_pixels: Of an image, if fewer than the processor's.
        options: Of the chat template.

    Raises:
        DataError: The model takes no images and there are some.
        SettingsError: How many tokens an image takes is not known for this processor.
    """
    template = tokenizer if processor is None else processor
    texts = [
        template.apply_chat_template(
            [_chat_outline(role, text) for role, text in turns],
            add_generation_prompt=prefill is not None,
            tokenize=False,
            **(options or {}),
        )
        for turns, _ in chats
    ]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    # The rollout appends its tokens to those of the prompt.
    opening = len(tokenizer.encode(prefill or "", add_special_tokens=False))
    pictures = [0] * len(chats)
    if any(sizes for _, sizes in chats):
        if processor is None:
            raise DataError("rows have images, but the model has no image processor")
        limits = image_bounds(processor.image_processor, overrides or {})
        if most_pixels is not None:
            limits = limits._replace(maximum=min(limits.maximum, most_pixels))
        # Of an image's tokens the template writes one.
        pictures = [sum(image_tokens(size, limits) - 1 for size in sizes) for _, sizes in chats]
    return [len(ids) + opening + more for ids, more in zip(encoded, pictures, strict=True)]


def _chat_outline(role: str, text: str) -> Mapping[str, Any]:
    """Translate a message to the chat form, its images as entries without pixels."""
    pieces = text.split(IMAGE_PLACEHOLDER)
    if len(pieces) == 1:
        return {"role": role, "content": text}
    content: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces):
        if number:
            content.append({"type": "image"})
        if piece:
            content.append({"type": "text", "text": piece})
    return {"role": role, "content": content}
