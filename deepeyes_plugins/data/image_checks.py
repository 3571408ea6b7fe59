"""Look at the images of rows: whether they are there, can be decoded, and suit a processor."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.findings import Finding
from deepeyes_plugins.data.media import MediaRoot, read_media
from deepeyes_plugins.data.rl_rows import image_from
from deepeyes_plugins.protocol.content import MAXIMUM_ASPECT_RATIO, EncodedImage, ImageError


def file_findings(
    number: int, image: Any, media_root: MediaRoot | Path | None = None
) -> Iterator[Finding]:
    """Yield why an image cannot be found or decoded.

    Args:
        number: Of the image in its row, counted from 1.
        image: As in :func:`~deepeyes_plugins.data.rl_rows.image_from`.
        media_root: What paths are relative to.
    """
    name = f"image {number} ({image})" if isinstance(image, str | Path) else f"image {number}"
    try:
        if isinstance(media_root, MediaRoot):
            if isinstance(image, str):
                image = read_media(media_root.locate(image))
            media_root = None
        _decode(image_from(image, media_root))
    except (RowError, ImageError) as error:
        yield Finding(f"{name}: {error}", "images")


def stretch_findings(images: Iterable[Any], media_root: Path | None) -> Iterator[Finding]:
    """Yield which images a Qwen-VL processor refuses for their shape."""
    for number, image in enumerate(images, 1):
        width, height = image_from(image, media_root).size
        if max(width, height) > MAXIMUM_ASPECT_RATIO * min(width, height):
            reason = f"image {number}: {width} x {height} pixels, an aspect ratio over 200"
            yield Finding(reason, "images")


def _decode(image: EncodedImage) -> None:
    """Read an image to its last byte; a JPEG at an eighth of its size, which is much faster.

    Raises:
        ImageError: It is none, is cut short, or holds too many pixels.
    """
    width, height = image.size
    try:
        with Image.open(io.BytesIO(image.data)) as opened:
            opened.draft("RGB", (width // 8, height // 8))
            opened.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"cannot be decoded: {error}") from error
