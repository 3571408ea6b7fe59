"""LLaMA-Factory's Qwen-VL plugins with the image preprocessing of the other hosts.

Images are decoded and resized by the code that RL uses (EXIF rotation, palettes, 16 bits,
transparency, size limits), and may be in a zip file. The number of an image's tokens is computed
from the size in its header; upstream processes every pixel for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from llamafactory.data.mm_plugin import PLUGINS, Qwen2VLPlugin, Qwen3VLPlugin, register_mm_plugin

from deepeyes_plugins.data.images import image_from
from deepeyes_plugins.hosts.transformers.images import (
    ImageBounds,
    image_bounds,
    model_image,
    model_size,
)


class SamePixels:
    """Mixin for LLaMA-Factory plugins: own preprocessing of images, upstream's of videos."""

    def _get_mm_token_metadata(
        self, images: list[Any], videos: list[Any], audios: list[Any], processor: Any
    ) -> Any:
        if videos or audios:
            return super()._get_mm_token_metadata(images, videos, audios, processor)  # type: ignore[misc]
        if not images:
            return {}
        bounds = _bounds(processor)
        patch = processor.image_processor.patch_size
        sizes = [model_size(image_from(image).size, bounds) for image in images]
        grids = [[1, height // patch, width // patch] for width, height in sizes]
        return {"image_grid_thw": torch.tensor(grids)}

    def _get_mm_inputs(
        self, images: list[Any], videos: list[Any], audios: list[Any], processor: Any
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = super()._get_mm_inputs([], videos, audios, processor)  # type: ignore[misc]
        if images:
            bounds = _bounds(processor)
            pictures = [model_image(image_from(image), bounds) for image in images]
            inputs |= processor.image_processor(
                pictures,
                return_tensors="pt",
                min_pixels=bounds.minimum,
                max_pixels=bounds.maximum,
            )
        return inputs


@dataclass
class DeepEyesQwen2VLPlugin(SamePixels, Qwen2VLPlugin):
    """Plugin for Qwen2-VL and Qwen2.5-VL."""


@dataclass
class DeepEyesQwen3VLPlugin(SamePixels, Qwen3VLPlugin):
    """Plugin for Qwen3-VL."""


def register() -> None:
    """Register the plugins by the names of their templates; idempotent."""
    for name, plugin in (
        ("deepeyes_qwen2_vl", DeepEyesQwen2VLPlugin),
        ("deepeyes_qwen3_vl", DeepEyesQwen3VLPlugin),
    ):
        if name not in PLUGINS:
            register_mm_plugin(name, plugin)


def _bounds(processor: Any) -> ImageBounds:
    """Return the processor's bounds, restricted to image_min_pixels and image_max_pixels."""
    least, most = processor.image_min_pixels, processor.image_max_pixels
    own = image_bounds(processor.image_processor, {})
    return own._replace(minimum=max(own.minimum, least), maximum=min(own.maximum, most))
