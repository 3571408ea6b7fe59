"""Image resizing as by the model's image processor, shared by SFT and RL.

Engines and trainers receive resized images instead of originals; the processor's own resizing is
then the identity.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from transformers import Qwen2VLImageProcessor
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.protocol.content import MAXIMUM_ASPECT_RATIO, EncodedImage

logger = logging.getLogger(__name__)

SECTION = "data.mm_processor_kwargs"
"""Section of a recipe that overrides the image processor."""

PIXELS = ("min_pixels", "max_pixels")

_FIXED = ("do_resize", "patch_size", "merge_size", "temporal_patch_size")
_NESTED = ("images_kwargs", "common_kwargs")


class ImageBounds(NamedTuple):
    """Size limits of an image processor: multiple of a side, minimum and maximum pixels."""

    factor: int
    minimum: int
    maximum: int


def image_bounds(image_processor: Any, overrides: Mapping[str, Any]) -> ImageBounds:
    """Return the bounds that a Qwen-VL image processor uses.

    ``min_pixels`` and ``max_pixels`` apply only if both are given, each as an override or as an
    attribute; otherwise ``size`` applies. The processor ignores one of the two alone, and so does
    this function; :func:`check_image_settings` rejects it before a run starts.

    Args:
        image_processor: The model's image processor, with patches of 14 pixels (Qwen2.5-VL) or 16
            (Qwen3-VL).
        overrides: Keyword arguments of its calls (verl's ``data.mm_processor_kwargs``).

    Raises:
        SettingsError: The processor rejects these settings, or its type is not supported.
    """
    _check_kind(image_processor)
    for name in overrides:
        if name in _FIXED:
            raise SettingsError(f"{SECTION}.{name}: belongs to the model; remove it")
        if name in _NESTED:
            raise SettingsError(f"{SECTION}.{name}: write its keys directly under {SECTION}")
    minimum, maximum = (_pixels(name, image_processor, overrides) for name in PIXELS)
    if "size" in overrides:
        _check_size(overrides["size"])
    if minimum is None or maximum is None:
        for name in PIXELS:
            if name in overrides:
                _warn_of_ignored(name)
        size = overrides.get("size", image_processor.size)
        if not _is_size(size):
            raise SettingsError(
                f"the model's image processor has the size {size}, without shortest_edge and "
                "longest_edge: correct its preprocessor_config.json"
            )
        minimum, maximum = size["shortest_edge"], size["longest_edge"]
    if minimum < 1 or maximum < 1:
        raise SettingsError(
            f"the model's image processor allows {minimum} to {maximum} pixels: correct its "
            "preprocessor_config.json"
        )
    factor = image_processor.patch_size * image_processor.merge_size
    return ImageBounds(factor, int(minimum), int(maximum))


def check_image_settings(image_processor: Any, overrides: Mapping[str, Any]) -> None:
    """Reject overrides that the processor rejects or ignores, or that contradict each other.

    Arguments are those of :func:`image_bounds`.

    Raises:
        SettingsError: As in :func:`image_bounds`, or only one of ``min_pixels`` and ``max_pixels``
            is given, or the minimum is above the maximum.
    """
    bounds = image_bounds(image_processor, overrides)
    given = {name: overrides[name] for name in PIXELS if name in overrides}
    least = given.get("min_pixels", min(bounds.minimum, given.get("max_pixels", bounds.minimum)))
    most = given.get("max_pixels", max(bounds.maximum, least))
    if len(given) == 1 and None in (getattr(image_processor, name, None) for name in PIXELS):
        raise SettingsError(
            f"{SECTION}.{min(given)}: alone it has no effect, because the image processor takes "
            f"min_pixels and max_pixels only together. Set both: +{SECTION}.min_pixels={least} "
            f"+{SECTION}.max_pixels={most}"
        )
    if least > most:
        raise SettingsError(f"{SECTION}: min_pixels ({least}) is above max_pixels ({most})")


def model_size(size: tuple[int, int], bounds: ImageBounds) -> tuple[int, int]:
    """Return the width and height in pixels to which the processor resizes an image of ``size``.

    The processor rejects aspect ratios above 200, so such images are first reduced to 200.
    """
    width, height = _limit_aspect_ratio(*size)
    height, width = smart_resize(height, width, bounds.factor, bounds.minimum, bounds.maximum)
    return width, height


def image_tokens(size: tuple[int, int], bounds: ImageBounds) -> int:
    """Return the number of placeholder tokens of an image of ``size`` (width, height)."""
    width, height = model_size(size, bounds)
    return (width // bounds.factor) * (height // bounds.factor)


def model_image(image: EncodedImage, bounds: ImageBounds) -> Image.Image:
    """Decode and resize an image so that the processor makes the same features of it.

    The result has exactly the processor's pixels, so that the processor does not resize it again.
    If it would, the image keeps its own size: it is thinner than a patch of the model, or the
    bounds are so close that no size fits.

    Raises:
        ImageError: The image cannot be decoded.
    """
    picture = image.pil()
    size = model_size(picture.size, bounds)
    if model_size(size, bounds) != size:
        size = _limit_aspect_ratio(*picture.size)
    if size == picture.size:
        return picture
    # The processor's own resizing; Pillow's takes two to five times as long.
    width, height = size
    pixels = functional.resize(
        functional.pil_to_tensor(picture),
        [height, width],
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    return functional.to_pil_image(pixels)


def _limit_aspect_ratio(width: int, height: int) -> tuple[int, int]:
    """Shorten the longer side to the largest supported aspect ratio."""
    limit = int(min(width, height) * MAXIMUM_ASPECT_RATIO)
    return min(width, limit), min(height, limit)


def _check_kind(image_processor: Any) -> None:
    if not isinstance(image_processor, Qwen2VLImageProcessor | Qwen2VLImageProcessorPil):
        found = ", ".join(
            f"{name} {getattr(image_processor, name, 'missing')}"
            for name in ("patch_size", "merge_size", "size")
        )
        raise SettingsError(
            f"the model's image processor {type(image_processor).__name__} ({found}) is not "
            "supported: use a model whose image processor is Qwen2VLImageProcessor (Qwen2.5-VL, "
            "Qwen3-VL)"
        )
    if not image_processor.do_resize:
        raise SettingsError(
            "the model's image processor has do_resize false, so images may not consist of whole "
            "patches: set do_resize to true in its preprocessor_config.json"
        )


def _pixels(name: str, image_processor: Any, overrides: Mapping[str, Any]) -> int | None:
    if name not in overrides:
        return getattr(image_processor, name, None)
    value = overrides[name]
    if type(value) is not int or value < 1:
        raise SettingsError(f"{SECTION}.{name}: {value!r} is not a positive whole number")
    return value


def _check_size(size: Any) -> None:
    # verl passes an OmegaConf dictionary on, which the processor rejects.
    values = size.values() if type(size) is dict and _is_size(size) else ()
    if {*map(type, values)} != {int} or min(values) < 1:
        raise SettingsError(
            f"{SECTION}.size: the processor rejects {size!r} as passed by verl; set min_pixels "
            "and max_pixels instead"
        )


def _is_size(size: Any) -> bool:
    edges = dict(size) if isinstance(size, dict | SizeDict) else {}
    return edges.keys() == {"shortest_edge", "longest_edge"}


@lru_cache
def _warn_of_ignored(name: str) -> None:
    logger.warning(
        "%s.%s alone has no effect: the image processor takes min_pixels and max_pixels only "
        "together. Set both.",
        SECTION,
        name,
    )
