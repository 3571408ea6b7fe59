"""Token counter for prompts and conversations; images are not decoded."""

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
"""Role and text of each turn, with ``<image>`` placeholders; width and height of each image."""


@dataclass
class ModelTokenCounter:
    """Counts tokens with the tokenizer, chat template and image processor of a model.

    Only its arguments are pickled; each process loads its own tokenizer.

    Attributes:
        model: Folder, or name on the hub.
        prompt_pixels: Maximum pixels of an image in a prompt, if lower than the processor's.
        conversation_pixels: Maximum pixels of an image in a conversation (``image_max_pixels``).
        prefill: Text that opens every turn.
    """

    model: str
    prompt_pixels: int | None = None
    conversation_pixels: int | None = 262_144
    prefill: str = DEEPEYES_V2.prefill
    _tokenizer: Any = field(default=None, repr=False, compare=False)
    _processor: Any = field(default=None, repr=False, compare=False)
    _lock: Any = field(default=None, repr=False, compare=False)

    def prompt(self, turns: Sequence[tuple[str, str]], sizes: Sequence[tuple[int, int]]) -> int:
        """Count the tokens of a prompt, including the prefill.

        Args:
            turns: Role and text; images are ``<image>`` placeholders.
            sizes: Width and height of each image, in pixels.

        Raises:
            DataError: The model cannot be loaded, or does not support images.
        """
        return self._count((turns, sizes), self.prompt_pixels, self.prefill)

    def conversation(
        self, turns: Sequence[tuple[str, str]], sizes: Sequence[tuple[int, int]]
    ) -> int:
        """Count the tokens of a conversation; arguments as in :meth:`prompt`.

        Raises:
            DataError: As in :meth:`prompt`.
        """
        return self._count((turns, sizes), self.conversation_pixels, None)

    def load(self) -> None:
        """Load the tokenizer and, for a vision-language model, the processor.

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
        # Tokenizers of the tokenizers library are not thread-safe.
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
        chats: Turns and image sizes of each chat.
        tokenizer: The model's tokenizer.
        processor: The model's processor; ``None`` for a text-only model.
        prefill: Text that opens the answer; ``None`` if no answer is generated.
        overrides: Overrides of
            :func:`~deepeyes_plugins.hosts.transformers.images.image_bounds`.
        most_pixels: Maximum pixels of an image, if lower than the processor's.
        options: Keyword arguments of the chat template.

    Raises:
        DataError: There are images, but the model does not support them.
        SettingsError: The image processor is not supported.
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
    # The rollout encodes the prefill separately and appends its tokens.
    opening = len(tokenizer.encode(prefill or "", add_special_tokens=False))
    pictures = [0] * len(chats)
    if any(sizes for _, sizes in chats):
        if processor is None:
            raise DataError("rows have images, but the model has no image processor")
        limits = image_bounds(processor.image_processor, overrides or {})
        if most_pixels is not None:
            limits = limits._replace(maximum=min(limits.maximum, most_pixels))
        # The template writes one token per image.
        pictures = [sum(image_tokens(size, limits) - 1 for size in sizes) for _, sizes in chats]
    return [len(ids) + opening + more for ids, more in zip(encoded, pictures, strict=True)]


def _chat_outline(role: str, text: str) -> Mapping[str, Any]:
    """Convert a message to the chat format, with image entries that have no pixels."""
    texts = text.split(IMAGE_PLACEHOLDER)
    if len(texts) == 1:
        return {"role": role, "content": text}
    content: list[dict[str, Any]] = []
    for number, part in enumerate(texts):
        if number:
            content.append({"type": "image"})
        if part:
            content.append({"type": "text", "text": part})
    return {"role": role, "content": content}
