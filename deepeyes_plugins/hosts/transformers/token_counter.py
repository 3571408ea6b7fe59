"""Count the tokens of prompts and conversations without decoding an image."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.hosts.transformers.images import ImageBounds, image_bounds, image_tokens
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2, IMAGE_PLACEHOLDER


@dataclass
class ModelTokenCounter:
    """Counts as the tokenizer, chat template and image processor of a model do.

    What it was made from travels between processes; each loads its own tokenizer.

    Attributes:
        model: Folder or name on the hub.
        prompt_pixels: Most pixels of an image of a prompt; by default the processor's.
        conversation_pixels: Most pixels of an image of a conversation (``image_max_pixels``).
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
        return self._count(turns, sizes, self.prompt_pixels, opens=True)

    def conversation(
        self, turns: Sequence[tuple[str, str]], sizes: Sequence[tuple[int, int]]
    ) -> int:
        """Count a whole conversation; arguments as in :meth:`prompt`.

        Raises:
            DataError: As in :meth:`prompt`.
        """
        return self._count(turns, sizes, self.conversation_pixels, opens=False)

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

    def _count(
        self,
        turns: Sequence[tuple[str, str]],
        sizes: Sequence[tuple[int, int]],
        pixels: int | None,
        *,
        opens: bool,
    ) -> int:
        self.load()
        template = self._processor or self._tokenizer
        # A tokenizer of the tokenizers library is not to be used by several threads at once.
        with self._lock:
            text = template.apply_chat_template(
                [chat_outline(role, text) for role, text in turns],
                add_generation_prompt=opens,
                tokenize=False,
            )
            ids = self._tokenizer(text + (self.prefill if opens else ""), add_special_tokens=False)
        # Of an image's tokens the template writes one.
        more = sum(image_tokens(size, self._bounds(pixels)) - 1 for size in sizes)
        return len(ids["input_ids"]) + more

    def _bounds(self, pixels: int | None) -> ImageBounds:
        if self._processor is None:
            raise DataError(f"rows have images, but {self.model} has no image processor")
        overrides = {} if pixels is None else {"max_pixels": pixels}
        return image_bounds(self._processor.image_processor, overrides)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenizer": None, "_processor": None, "_lock": None}


def chat_outline(role: str, text: str) -> Mapping[str, Any]:
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
