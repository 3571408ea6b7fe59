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
    height, width = smart_resize(
        picture.height, picture.width, bounds.factor, bounds.minimum, bounds.maximum
    )
    if (width, height) == picture.size:
        return picture
    return picture.resize((width, height), Image.Resampling.BICUBIC)
