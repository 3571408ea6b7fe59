"""Image checks: the file exists, can be decoded, and has a size that processors accept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.findings import Finding
from deepeyes_plugins.data.images import image_from
from deepeyes_plugins.data.media import MediaRoot, short_name
from deepeyes_plugins.protocol.content import (
    MAXIMUM_ASPECT_RATIO,
    EncodedImage,
    ImageError,
    exif_orientation,
    upright_size,
)
from deepeyes_plugins.protocol.pixels import describe_depth

_UPRIGHT = (None, 1)
_COMMON_MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1", "I", "F")


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """A readable image of a row.

    Attributes:
        image: The encoded image.
        size: Upright width and height in pixels.
        format: File format, for instance ``JPEG``.
        mode: Pillow's pixel mode, for instance ``RGB``.
        orientation: EXIF orientation, 1 to 8.
        animated: Whether it has several frames.
        depth: How more than 8 bits per channel are converted; empty for 8 bits.
    """

    image: EncodedImage
    size: tuple[int, int]
    format: str
    mode: str
    orientation: int | None
    animated: bool
    depth: str


def inspect_image(
    number: int, image: Any, media_root: MediaRoot | Path | None = None, *, decode: bool = True
) -> ImageInfo | Finding:
    """Read an image; return a finding if it cannot be found or decoded.

    Only decoding all pixels detects truncated and broken files.

    Args:
        number: Number of the image in its row, from 1.
        image: As in :func:`~deepeyes_plugins.data.images.image_from`.
        media_root: Folder or zip file that paths are relative to; ``None`` if they are located.
        decode: Whether to decode the pixels, not only the header.
    """
    name = f"image {number}"
    if isinstance(image, str | Path):
        name = f"{name} ({short_name(image)})"
    try:
        if isinstance(media_root, MediaRoot):
            image, media_root = media_root.located(image), None
        file = image_from(image, media_root)
        with file.open() as opened:
            depth = describe_depth(opened)
            orientation = exif_orientation(opened)
            try:
                # Seeks a second frame, and raises if it is broken.
                animated = bool(getattr(opened, "is_animated", False)) and opened.format != "MPO"
                if decode:
                    opened.load()
            # Decoders raise anything: struct.error, KeyError, zlib.error, …
            except Exception as error:
                raise ImageError(f"cannot be decoded: {error}") from error
            size = upright_size(opened, orientation)
            kind, mode = str(opened.format), opened.mode
            return ImageInfo(file, size, kind, mode, orientation, animated, depth)
    except (RowError, ImageError) as error:
        return Finding(f"{name}: {error}", "images")


def aspect_ratio_findings(number: int, size: tuple[int, int]) -> Iterator[Finding]:
    """Yield a finding if Qwen-VL processors reject the image's aspect ratio."""
    width, height = size
    if max(width, height) > MAXIMUM_ASPECT_RATIO * min(width, height):
        reason = f"image {number}: {width} x {height} pixels, an aspect ratio over 200"
        yield Finding(reason, "images")


def image_warnings(number: int, seen: ImageInfo) -> Iterator[Finding]:
    """Yield warnings where training reads an image differently from other programs."""
    if seen.orientation not in _UPRIGHT:
        yield _warning(
            f"image {number}: rotated by EXIF orientation {seen.orientation}; training and tools "
            "see it upright, programs that ignore EXIF do not"
        )
    if seen.animated:
        yield _warning(f"image {number}: animated; training sees only its first frame")
    if seen.depth:
        yield _warning(f"image {number}: {seen.depth}, in training as in tools")
    if seen.mode == "CMYK":
        yield _warning(
            f"image {number}: CMYK; training converts it to RGB without its colour profile"
        )
    elif seen.mode not in _COMMON_MODES and not seen.mode.startswith("I;16"):
        yield _warning(f"image {number}: mode {seen.mode}; training converts it to RGB")


def _warning(reason: str) -> Finding:
    return Finding(reason, "images", "warning")
