"""Messages made of text and images, the one form that all hosts translate from."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from PIL import Image, ImageOps

Role = Literal["system", "user", "assistant"]

MINIMUM_SIDE = 32
MAXIMUM_ASPECT_RATIO = 200.0
MAXIMUM_PIXELS = 178_956_970
"""Pillow's own threshold for a decompression bomb; above it an image is refused."""


class ImageError(ValueError):
    """Bytes that are no readable image, or one too large to open."""


class EncodedImage:
    """An image file held as bytes, decoded on first use.

    The bytes are what travels (sandbox, OpenAI-compatible servers, trajectory files); the hash of
    the bytes names it everywhere.
    """

    def __init__(self, data: bytes) -> None:
        """Hold ``data``, the bytes of an image file (PNG, JPEG, WebP, ...); nothing is decoded."""
        self.data = data

    @classmethod
    def from_pil(cls, image: Image.Image) -> EncodedImage:
        """Encode a Pillow image as PNG (lossless, lightly compressed)."""
        buffer = io.BytesIO()
        if image.mode not in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
            image = image.convert("RGB")
        image.save(buffer, "PNG", compress_level=1)
        return cls(buffer.getvalue())

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal content hash."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, read from the header.

        Raises:
            ImageError: The bytes are no image.
        """
        return self._open().size

    @cached_property
    def media_type(self) -> str:
        """For instance ``image/png``.

        Raises:
            ImageError: The bytes are no image.
        """
        return self._open().get_format_mimetype() or "application/octet-stream"

    def pil(self) -> Image.Image:
        """Decode to an RGB Pillow image, upright (EXIF rotation applied), in original size.

        Raises:
            ImageError: The bytes are no image, are cut short, or hold too many pixels.
        """
        image = self._open()
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ImageError(f"the image cannot be decoded: {error}") from error

    def _open(self) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(self.data))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ImageError(f"not a readable image ({len(self.data)} bytes): {error}") from error
        if image.width * image.height > MAXIMUM_PIXELS:
            raise ImageError(f"image of {image.width} x {image.height} pixels is too large")
        return image

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EncodedImage) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"EncodedImage({len(self.data)} bytes, sha256={self.sha256[:12]})"


Part = str | EncodedImage


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its role and its parts in order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts joined; images left out."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[EncodedImage, ...]:
        """The images in order."""
        return tuple(part for part in self.parts if isinstance(part, EncodedImage))


def fill_placeholders(
    text: str, images: Iterable[EncodedImage], placeholder: str
) -> tuple[Part, ...]:
    """Split ``text`` at its placeholders and put one image at each.

    Raises:
        ValueError: More placeholders than images. Images left over stay in the iterator, for the
            next message.
    """
    source = iter(images)
    parts: list[Part] = []
    for number, piece in enumerate(text.split(placeholder)):
        if number:
            image = next(source, None)
            if image is None:
                raise ValueError(f"placeholder {number} of {placeholder!r} has no image")
            parts.append(image)
        if piece:
            parts.append(piece)
    return tuple(parts)


def fit_for_model(image: EncodedImage) -> EncodedImage:
    """Bring an observation's image within what the vision tower accepts.

    A side under 32 pixels is upscaled to 32 (Lanczos) and an aspect ratio over 200 brought under
    it, as in the DeepEyesV2 training code. Any other image is returned as it is, not re-encoded.

    Raises:
        ImageError: The bytes are no readable image.
    """
    width, height = image.size
    width, height = max(width, MINIMUM_SIDE), max(height, MINIMUM_SIDE)
    width = min(width, int(height * MAXIMUM_ASPECT_RATIO))
    height = min(height, int(width * MAXIMUM_ASPECT_RATIO))
    if (width, height) == image.size:
        return image
    resized = image.pil().resize((width, height), Image.Resampling.LANCZOS)
    return EncodedImage.from_pil(resized)
