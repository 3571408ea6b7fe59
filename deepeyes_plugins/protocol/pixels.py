"""Conversion of images to 8 bits per channel, from every mode of Pillow.

Pillow itself clips: of a 16-bit image it keeps the darkest 256 levels and turns all others white.
It also resizes palette and 1-bit images by nearest pixel, so both are converted first. All images
for a model, its tools or display are decoded by this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_PLAIN_MODES = ("L", "LA", "RGB", "RGBA")
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2
# A PNG file names its transparent colour at its own depth; Pillow looks for it among 8-bit values.
_LEVEL_STEPS = {"1": 255, "L;2": 85, "L;4": 17}
_BAND_ROWS = 64


def to_8bit(image: Image.Image) -> Image.Image:
    """Convert to mode L, LA, RGB or RGBA; return an image in one of these unchanged.

    Integers of more than 8 bits keep the range of their format: its least value becomes black, its
    greatest white. Where Pillow tells no format (mode ``I``), the range is the smallest that holds
    all values: of 8 bits, of 16, or of as many as are needed; with a sign if there are negative
    values. Floats within 0 and 1 are black to white; others are stretched from their least to their
    greatest value, as matplotlib's ``imshow`` does (a single value counts on the scale of 0 to
    255). NaN and infinite values become white.

    Args:
        image: In any mode. It is not changed.
    """
    image = _with_8bit_transparency(image)
    if is_deep(image):
        image = _levels(image)
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if is_8bit(image):
        return image
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB as :func:`to_8bit` does, with white behind transparent pixels."""
    image = to_8bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGB", layer.size, "white")
    canvas.paste(layer, mask=layer)
    canvas.info = layer.info
    return canvas


def is_8bit(image: Image.Image) -> bool:
    """Return whether :func:`to_8bit` returns the image unchanged."""
    return image.mode in _PLAIN_MODES and "transparency" not in image.info


def is_deep(image: Image.Image) -> bool:
    """Return whether Pillow stores the pixels in more than 8 bits per channel."""
    return image.mode.startswith(("I", "F"))


def describe_depth(image: Image.Image) -> str:
    """Describe the bits per channel of a file and their conversion.

    Args:
        image: An opened image before decoding.

    Returns:
        For instance ``16-bit channels, scaled to 8-bit``; empty for 8 bits and fewer.
    """
    if image.mode == "F":
        return "floats, scaled to 8-bit (from zero to one, or else from least to greatest value)"
    tags = _tags(image)
    if image.mode == "I" and not _is_16bit_file(image) and tags.get(_BITS_PER_SAMPLE) != (16,):
        return "32-bit integers, scaled to 8-bit (from the smallest range that holds all values)"
    bits = tags.get(_BITS_PER_SAMPLE, (16 if is_deep(image) or _is_halved(image) else 8,))[0]
    return f"{bits}-bit channels, scaled to 8-bit" if bits > 8 else ""


def _levels(image: Image.Image) -> Image.Image:
    """Return the 8-bit grey levels of an image with more bits, with alpha if it has any."""
    values = np.asarray(image)
    tags = _tags(image)
    if image.mode == "F":
        levels = _float_levels(values)
    else:
        if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (_SIGNED,))[0] == _UNSIGNED:
            values = values.view(np.uint32)
        levels = _integer_levels(values, *_integer_range(image, values))
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = np.invert(levels)
    if image.mode == "F":
        levels[~np.isfinite(values)] = 255
    grey = Image.fromarray(levels)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return grey


def _integer_range(image: Image.Image, values: NDArray[Any]) -> tuple[int, int]:
    """Return the value of black and the number of bits of the range above it."""
    tags = _tags(image)
    if image.mode != "I":
        return 0, tags.get(_BITS_PER_SAMPLE, (16,))[0]
    if _is_16bit_file(image):
        return 0, 16
    least, greatest = int(values.min(initial=0)), int(values.max(initial=0))
    is_int16 = tags.get(_BITS_PER_SAMPLE) == (16,)
    if least < 0:
        needed = 1 + max(greatest.bit_length(), (~least).bit_length())
        bits = 16 if is_int16 else max(8, needed)
        return -(1 << bits - 1), bits
    if is_int16:
        return 0, 15
    needed = greatest.bit_length()
    return 0, next(bits for bits in (8, 16, needed) if needed <= bits)


def _integer_levels(values: NDArray[Any], black: int, bits: int) -> NDArray[np.uint8]:
    levels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _BAND_ROWS):
        band = values[top : top + _BAND_ROWS].astype(np.int64)
        levels[top : top + _BAND_ROWS] = (band - black) >> (bits - 8)
    return levels


def _float_levels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    finite = np.isfinite(values)
    least = float(np.min(values, where=finite, initial=np.inf))
    greatest = float(np.max(values, where=finite, initial=-np.inf))
    if least >= 0 and greatest <= 1:
        least, greatest = 0.0, 1.0
    elif least >= greatest:
        least, greatest = 0.0, 255.0
    levels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _BAND_ROWS):
        band = np.nan_to_num(values[top : top + _BAND_ROWS].astype(np.float64))
        share = ((band - least) / (greatest - least)).clip(0, 1)
        levels[top : top + _BAND_ROWS] = np.rint(255 * share)
    return levels


def _with_8bit_transparency(image: Image.Image) -> Image.Image:
    """``image``, whose transparent colour, if it has one, is at the depth of its pixels."""
    colour = image.info.get("transparency")
    raw_mode = next(iter(_stored(image)), image.mode)
    if isinstance(colour, int) and raw_mode in _LEVEL_STEPS:
        colour = min(255, colour * _LEVEL_STEPS[raw_mode])
    elif isinstance(colour, tuple) and _is_halved(image):
        colour = tuple(value >> 8 for value in colour)
    else:
        return image
    image = image.copy()
    image.info["transparency"] = colour
    return image


def _stored(image: Image.Image) -> tuple[Any, ...]:
    """Return Pillow's decoder arguments, which describe the stored pixels before decoding."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _is_halved(image: Image.Image) -> bool:
    """Return whether Pillow keeps only the upper 8 bits per channel of the file."""
    raw_mode, *rest = *_stored(image), ""
    maximum = rest[0] if image.format == "PPM" else 0
    halved = ";16" in str(raw_mode) or (isinstance(maximum, int) and maximum > 255)
    return halved and not is_deep(image)


def _is_16bit_file(image: Image.Image) -> bool:
    """Return whether values in mode ``I`` have 16 bits in the file."""
    return image.format in ("PNG", "PPM")


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF file; empty for other images."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return tags
