"""Bring images to the size that the model's processor would give them, the same in SFT and in RL.

Engines and trainers get small images instead of originals; the processor's own resizing is then
the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from deepeyes_plugins.protocol.content import MAXIMUM_ASPECT_RATIO, EncodedImage


class ImageBounds(NamedTuple):
    """What a processor allows: side multiple in pixels, least and most pixels."""

    factor: int
    minimum: int
    maximum: int


def image_bounds(image_processor: Any, overrides: Mapping[str, Any]) -> ImageBounds:
    """Read the bounds of a Qwen-VL image processor.

    Args:
        image_processor: Of the model; its patches have 14 pixels (Qwen2.5-VL) or 16 (Qwen3-VL).
        overrides: verl's ``data.mm_processor_kwargs``; ``min_pixels`` and ``max_pixels`` win.
    """
    size = overrides.get("size") or image_processor.size
    minimum = overrides.get("min_pixels") or size["shortest_edge"]
    maximum = overrides.get("max_pixels") or size["longest_edge"]
    factor = image_processor.patch_size * image_processor.merge_size
    return ImageBounds(factor, int(minimum), int(maximum))


def model_size(size: tuple[int, int], bounds: ImageBounds) -> tuple[int, int]:
    """Width and height at which the model sees an image of ``size`` (width, height), in pixels.

    That of the processor, with an aspect ratio over 200 brought under it: the processor refuses
    one, before and behind the rounding of its sides.
    """
    width, height = _squeezed(*size, step=1)
    height, width = smart_resize(height, width, bounds.factor, bounds.minimum, bounds.maximum)
    return _squeezed(width, height, step=bounds.factor)


def image_tokens(size: tuple[int, int], bounds: ImageBounds) -> int:
    """Placeholders that the processor gives an image of ``size``, width and height in pixels.

    It resizes once more. That changes nothing unless the bounds are so close that no size is
    within them.
    """
    width, height = model_size(size, bounds)
    return (width // bounds.factor) * (height // bounds.factor)


def model_image(image: EncodedImage, bounds: ImageBounds) -> Image.Image:
    """Decode and resize, to the very pixels that the processor would make of the original.

    Raises:
        ImageError: The image cannot be decoded.
    """
    picture = image.pil()
    width, height = model_size(picture.size, bounds)
    if (width, height) == picture.size:
        return picture
    # As the processor does it; Pillow's own takes two to five times as long.
    pixels = functional.resize(
        functional.pil_to_tensor(picture),
        [height, width],
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    return functional.to_pil_image(pixels)


def _squeezed(width: int, height: int, *, step: int) -> tuple[int, int]:
    """Shorten the longer side, in whole steps, to an aspect ratio that processors take."""
    limit = int(min(width, height) * MAXIMUM_ASPECT_RATIO) // step * step
    return min(width, limit), min(height, limit)
