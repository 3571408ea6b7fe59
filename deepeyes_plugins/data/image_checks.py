"""Look at the images of rows: whether they are there, can be decoded, and suit a processor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.findings import Finding
from deepeyes_plugins.data.media import MediaRoot, read_media, short_name
from deepeyes_plugins.data.rl_rows import image_from
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
class SeenImage:
    """An image of a row that was looked at.

    Attributes:
        image: Its file.
        size: Width and height in pixels, upright.
        format: Of the file, for instance ``JPEG``.
        mode: Of its pixels, as Pillow names it, for instance ``RGB``.
        orientation: In its EXIF data, 1 to 8.
        animated: Whether it has several frames.
        depth: What becomes of more than 8 bits per channel; empty where there are no more.
    """

    image: EncodedImage
    size: tuple[int, int]
    format: str
    mode: str
    orientation: int | None
    animated: bool
    depth: str


def see_image(
    number: int, image: Any, media_root: MediaRoot | Path | None = None, *, decode: bool = True
) -> SeenImage | Finding:
    """Look at an image, or say why it cannot be found or decoded.

    All of its pixels are decoded: what is cut short or broken shows nowhere else.

    Args:
        number: Of the image in its row, counted from 1.
        image: As in :func:`~deepeyes_plugins.data.rl_rows.image_from`.
        media_root: What paths are relative to.
        decode: Whether the pixels are decoded; otherwise only the header is read.
    """
    name = f"image {number}"
    if isinstance(image, str | Path):
        name = f"{name} ({short_name(image)})"
    try:
        if isinstance(media_root, MediaRoot):
            if isinstance(image, str):
                image = read_media(media_root.locate(image))
            media_root = None
        file = image_from(image, media_root)
        with file.open() as opened:
            depth = describe_depth(opened)
            orientation = exif_orientation(opened)
            try:
                # Looks for a second frame, and falls over a broken one.
                animated = bool(getattr(opened, "is_animated", False)) and opened.format != "MPO"
                if decode:
                    opened.load()
            # Decoders raise whatever they stumble on: struct.error, KeyError, zlib.error, ...
            except Exception as error:
                raise ImageError(f"cannot be decoded: {error}") from error
            size = upright_size(opened, orientation)
            kind, mode = str(opened.format), opened.mode
            return SeenImage(file, size, kind, mode, orientation, animated, depth)
    except (RowError, ImageError) as error:
        return Finding(f"{name}: {error}", "images")


def stretch_findings(number: int, size: tuple[int, int]) -> Iterator[Finding]:
    """Yield whether a Qwen-VL processor refuses an image for its shape."""
    width, height = size
    if max(width, height) > MAXIMUM_ASPECT_RATIO * min(width, height):
        reason = f"image {number}: {width} x {height} pixels, an aspect ratio over 200"
        yield Finding(reason, "images")


def image_doubts(number: int, seen: SeenImage) -> Iterator[Finding]:
    """Yield what training makes of an image that other programs may take otherwise."""
    if seen.orientation not in _UPRIGHT:
        yield _doubt(
            f"image {number}: turned by its EXIF data (orientation {seen.orientation}); training "
            "and tools see it upright, programs that ignore EXIF do not"
        )
    if seen.animated:
        yield _doubt(f"image {number}: an animation; training sees its first frame only")
    if seen.depth:
        yield _doubt(f"image {number}: {seen.depth}, in training as in tools")
    if seen.mode == "CMYK":
        yield _doubt(
            f"image {number}: CMYK; training sees it converted to RGB without its colour profile"
        )
    elif seen.mode not in _COMMON_MODES and not seen.mode.startswith("I;16"):
        yield _doubt(f"image {number}: mode {seen.mode}; training sees it converted to RGB")


def _doubt(reason: str) -> Finding:
    return Finding(reason, "images", "warning")
