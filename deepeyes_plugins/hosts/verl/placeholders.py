"""Token builder that computes image placeholders from sizes, without processing pixels.

verl's token builders call the model's processor for every prompt and observation and discard the
pixel values, which take nearly all of a turn's time. The number of placeholders depends only on the
size of an image.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from functools import lru_cache
from math import isqrt
from typing import Any, NamedTuple

import torch
from PIL import Image

from deepeyes_plugins.hosts.transformers.images import ImageBounds, image_bounds, image_tokens

logger = logging.getLogger(__name__)


_LARGEST_PROBE = 1 << 24
"""Maximum pixels from which probe sizes are derived."""


class Outline(NamedTuple):
    """An image of which only width and height in pixels are known."""

    size: tuple[int, int]


class PlaceholderProcessor:
    """Replacement of a Qwen-VL processor that returns token ids only."""

    def __init__(self, processor: Any, bounds: ImageBounds) -> None:
        """Wrap ``processor``, whose bounds are ``bounds``."""
        self._processor = processor
        self._bounds = bounds
        self._image_token_id: int = processor.image_token_id
        self.tokenizer = processor.tokenizer

    def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
        """Apply the processor's chat template."""
        return self._processor.apply_chat_template(*arguments, **options)

    def __call__(
        self,
        *,
        text: Sequence[str],
        images: Sequence[Image.Image | Outline] | None = None,
        videos: None = None,
        **options: Any,
    ) -> dict[str, list[list[int]]]:
        """Tokenize one text and expand the placeholder of every image.

        Args:
            text: A single text with one placeholder per image.
            images: Images with an aspect ratio of at most 200.
            videos: Not supported.
            **options: Options of the pixel processing; ignored.

        Raises:
            ValueError: The numbers of placeholders and images differ.
        """
        del videos, options
        [words] = text
        waiting = iter(images or ())
        ids: list[int] = []
        for token in self.tokenizer(words)["input_ids"]:
            count = 1
            if token == self._image_token_id:
                image = next(waiting, None)
                if image is None:
                    raise ValueError("the text has more image placeholders than images")
                count = image_tokens(image.size, self._bounds)
            ids.extend([token] * count)
        if next(waiting, None) is not None:
            raise ValueError("the text has fewer image placeholders than images")
        return {"input_ids": [ids]}


def without_pixels(builder: Any) -> Any:
    """Return a builder with the same results that does not process pixels.

    The first builder of a processor is compared with its replacement on a conversation with images
    of ordinary and extreme sizes. If they differ, or the processor is not supported, verl's own
    builder is returned.

    Args:
        builder: verl's ``ContinuousTokenBuilder`` for a vision-language model, or any other.
    """
    processor = getattr(builder, "processor", None)
    kind: Any = type(builder)
    if processor is None or not _agrees(
        kind,
        processor,
        _Settings(builder.mm_processor_kwargs),
        _Settings(builder.chat_template_kwargs),
    ):
        return builder
    return _pixel_free(builder)


class _Settings(dict[str, Any]):
    """Hashable keyword arguments, for use as a cache key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


@lru_cache(maxsize=16)
def _agrees(
    kind: type[Any], processor: Any, processor_settings: _Settings, template_settings: _Settings
) -> bool:
    """Return whether the replacement gives the same ids as the builder."""
    try:
        builder = kind(
            processor.tokenizer,
            processor,
            mm_processor_kwargs=dict(processor_settings),
            chat_template_kwargs=dict(template_settings),
        )
        pixel_free = _pixel_free(builder)
        sizes = probe_sizes(image_bounds(processor.image_processor, processor_settings))
        question = [_message(len(sizes))]
        picture = Image.new("RGB", sizes[0])
        answer = [_message(1, picture)]
        expected = builder.build_initial_tokens(question, images=[*map(_blank, sizes)])
        found = pixel_free.build_initial_tokens(question, images=[*map(Outline, sizes)])
        for some, ids in ((builder, expected), (pixel_free, found)):
            ids += some.merge_context_tokens(answer, answer * 2, [0]).token_ids
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        logger.warning("using the full processor for observations: %r", error)
        return False
    if expected != found:
        logger.warning("using the full processor for observations: its token counts differ")
    return expected == found


def _pixel_free(builder: Any) -> Any:
    pixel_free = copy.copy(builder)
    bounds = image_bounds(builder.processor.image_processor, builder.mm_processor_kwargs)
    pixel_free.processor = PlaceholderProcessor(builder.processor, bounds)
    return pixel_free


def probe_sizes(bounds: ImageBounds) -> list[tuple[int, int]]:
    """Return sizes at which processors are known to differ: strips, and images out of bounds."""
    longest = 2 * isqrt(min(bounds.maximum, _LARGEST_PROBE))
    return [
        (320, 240),
        (300, 700),
        (bounds.factor // 2, bounds.factor // 2),
        # A strip thinner than half a unit is made larger, and one a little thicker is not.
        (2600, bounds.factor // 2),
        (bounds.factor // 2 + 1, 2600),
        # A ratio of 200 may be more after rounding.
        (200 * (bounds.factor * 3 // 2 - 1), bounds.factor * 3 // 2 - 1),
        (longest, longest),
        (longest, longest // 150 + 4),
        (longest // 20 + 4, 6 * longest),
    ]


def _blank(size: tuple[int, int]) -> torch.Tensor:
    """Create an image on the meta device, for which the processor computes shapes only."""
    width, height = size
    return torch.empty(3, height, width, dtype=torch.uint8, device="meta")


def _message(pictures: int, picture: Image.Image | None = None) -> dict[str, Any]:
    content = [{"type": "image", "image": picture}] * pictures
    return {"role": "user", "content": [*content, {"type": "text", "text": "What is this?"}]}
