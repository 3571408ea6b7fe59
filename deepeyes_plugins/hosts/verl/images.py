"""Bring images to the size that the model's processor would give them.

Engines and trainer get small images instead of originals; the processor's own resizing is then
the identity. The sixteen rollouts of a prompt share one decoded image.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from deepeyes_plugins.protocol.content import EncodedImage


class ImageBounds(NamedTuple):
    """What a processor allows: side multiple in pixels, least and most pixels."""

    factor: int
    minimum: int
    maximum: int


def image_bounds(image_processor: Any, overrides: Mapping[str, Any]) -> ImageBounds:
    """Read the bounds of a Qwen-VL image processor.

    Args:
        image_processor: Of the model.
        overrides: verl's ``data.mm_processor_kwargs``; ``min_pixels`` and ``max_pixels`` win.
    """
    size = image_processor.size
    minimum = overrides.get("min_pixels") or size["shortest_edge"]
    maximum = overrides.get("max_pixels") or size["longest_edge"]
    factor = image_processor.patch_size * image_processor.merge_size
    return ImageBounds(factor, int(minimum), int(maximum))


@lru_cache(maxsize=512)
def model_image(image: EncodedImage, bounds: ImageBounds) -> Image.Image:
    """Decode and resize.

    Raises:
        ImageError: The image cannot be decoded.
        ValueError: Its aspect ratio is over 200.
    """
    picture = image.pil()
    size = model_size(picture.size, bounds)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


def model_size(size: tuple[int, int], bounds: ImageBounds) -> tuple[int, int]:
    """Return width and height that the processor gives to an image of ``size``, in pixels.

    Raises:
        ValueError: The aspect ratio is over 200.
    """
    width, height = size
    height, width = smart_resize(height, width, *bounds)
    return width, height


def image_tokens(size: tuple[int, int], bounds: ImageBounds) -> int:
    """Return how many tokens the model sees of an image of ``size``, in pixels.

    Raises:
        ValueError: The aspect ratio is over 200.
    """
    width, height = model_size(size, bounds)
    return (width // bounds.factor) * (height // bounds.factor)
