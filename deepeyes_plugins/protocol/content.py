"""Messages of text and images, the common form for all hosts."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from deepeyes_plugins.protocol.pixels import is_8bit, to_8bit, to_rgb

Role = Literal["system", "user", "assistant"]

MINIMUM_SIDE = 32
MAXIMUM_ASPECT_RATIO = 200.0
MAXIMUM_PIXELS = 178_956_970
"""Pillow's own threshold for a decompression bomb; above it an image is refused."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Accepted file formats. Pillow knows more, some of which start programs (EPS)."""

_PLAIN_FORMATS = ("PNG", "JPEG", "MPO", "WEBP")
_ORIENTATION = 0x0112
_ON_THEIR_SIDE = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
_TIFF_SIZE = (256, 257)
"""Tags of a TIFF file with the width and height of its pixels as they are stored."""


class ImageError(ValueError):
    """Bytes are not a readable image, or the image is too large."""


class EncodedImage:
    """An image file as bytes, decoded lazily.

    The bytes are sent to sandbox and OpenAI-compatible servers and written to trajectory logs;
    their hash is the image's name everywhere.
    """

    def __init__(self, data: bytes) -> None:
        """Store ``data``, the bytes of an image file (PNG, JPEG, WebP, …)."""
        self.data = data

    @classmethod
    def from_pil(cls, image: Image.Image) -> EncodedImage:
        """Encode a Pillow image as PNG (lossless, lightly compressed), upright, in 8 bits."""
        buffer = io.BytesIO()
        to_8bit(turn_upright(image)).save(buffer, "PNG", compress_level=1)
        return cls(buffer.getvalue())

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal content hash."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the upright image, read from the header.

        Raises:
            ImageError: The bytes are no image.
        """
        image = self.open()
        return upright_size(image, exif_orientation(image))

    @cached_property
    def media_type(self) -> str:
        """Media type, for instance ``image/png``.

        Raises:
            ImageError: The bytes are no image.
        """
        image = self.open()
        # Multi-picture files are JPEG files with appended images; servers accept only JPEG.
        format = "JPEG" if image.format == "MPO" else image.format
        return Image.MIME.get(format or "", "application/octet-stream")

    def pil(self) -> Image.Image:
        """Decode to an RGB Pillow image, upright (EXIF rotation applied), in original size.

        Transparent pixels become white, more than 8 bits are scaled as by
        :func:`~deepeyes_plugins.protocol.pixels.to_8bit`, and of an animation the first frame is
        used.

        Raises:
            ImageError: The bytes are no image, are cut short, or hold too many pixels.
        """
        return self._decoded(lambda file: turn_upright(to_rgb(file)))

    def upright(self) -> EncodedImage:
        """Return the image without EXIF rotation and transparency, for code in the sandbox.

        That is the image itself or, if it has one of these, a file with the pixels of :meth:`pil`:
        code that drops the alpha channel would see the colours under it.

        Raises:
            ImageError: The bytes are no readable image.
        """
        file = self.open()
        as_stored = exif_orientation(file) in (None, 1)
        if as_stored and file.has_transparency_data:
            alpha = self._decoded(lambda file: to_8bit(file).convert("RGBA").getchannel("A"))
            as_stored = alpha.getextrema() == (255, 255)
        return self if as_stored else EncodedImage.from_pil(self.pil())

    def plain(self) -> EncodedImage:
        """Return the image as a file that every program decodes to the same pixels.

        That is an opaque, upright PNG, JPEG or WebP file of 8-bit RGB or grey. Others (palette,
        transparency, more bits, EXIF rotation, other formats) are re-encoded with the pixels of
        :meth:`pil`.

        Raises:
            ImageError: The bytes are no readable image.
        """
        file = self.open()
        is_plain = file.format in _PLAIN_FORMATS and file.mode in ("RGB", "L") and is_8bit(file)
        if is_plain and exif_orientation(file) in (None, 1):
            return self
        return EncodedImage.from_pil(self.pil())

    def open(self) -> ImageFile.ImageFile:
        """Read the header; Pillow decodes the stored pixels lazily.

        Raises:
            ImageError: The bytes are no image, or it has too many pixels.
        """
        try:
            image = Image.open(io.BytesIO(self.data), formats=FORMATS)
        except Exception as error:
            # For an unknown format, Pillow's message has only the address of an object.
            reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
            raise ImageError(
                f"not a readable image ({len(self.data)} bytes){reason}. "
                f"Accepted are {', '.join(FORMATS)}."
            ) from error
        if image.width * image.height > MAXIMUM_PIXELS:
            raise ImageError(f"image of {image.width} x {image.height} pixels is too large")
        return image

    def _decoded(self, convert: Callable[[ImageFile.ImageFile], Image.Image]) -> Image.Image:
        file = self.open()
        try:
            return convert(file)
        # Decoders raise anything: struct.error, KeyError, zlib.error, …
        except Exception as error:
            raise ImageError(f"the image cannot be decoded: {error}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EncodedImage) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"EncodedImage({len(self.data)} bytes, sha256={self.sha256[:12]})"


def exif_orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation, 1 to 8; ``None`` if missing or broken."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def upright_size(image: Image.Image, orientation: int | None) -> tuple[int, int]:
    """Return width and height in pixels after applying the EXIF orientation (1 to 8)."""
    # For TIFF files, some versions of Pillow return the upright size, or do so after decoding.
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag, side) for tag, side in zip(_TIFF_SIZE, image.size, strict=True))
    return (height, width) if orientation in _ON_THEIR_SIDE else (width, height)


def turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; return an image without one unchanged."""
    image.load()  # Pillow rotates TIFF files itself and drops their orientation.
    upright = exif_orientation(image) in (None, 1)
    return image if upright else ImageOps.exif_transpose(image)


Part = str | EncodedImage


def encodable(text: str) -> str:
    """Replace lone surrogates in ``text`` by U+FFFD: neither UTF-8 nor tokenizers have them."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its role and its parts in order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The joined text parts, without images."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[EncodedImage, ...]:
        """The images in order."""
        return tuple(part for part in self.parts if isinstance(part, EncodedImage))


def fill_placeholders(
    text: str, images: Iterable[EncodedImage], placeholder: str
) -> tuple[Part, ...]:
    """Replace each placeholder in ``text`` by an image.

    Unused images stay in the iterator, for the next message.

    Raises:
        ValueError: There are more placeholders than images.
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
    """Resize an observation's image to sizes that the vision encoder accepts.

    A side under 32 pixels is upscaled to 32 (Lanczos) and an aspect ratio over 200 is reduced, as
    in the DeepEyesV2 training code. Other images are returned unchanged, without re-encoding.

    Every image is decoded once, so that a broken one fails here and not in the policy.

    Raises:
        ImageError: The bytes are no readable image.
    """
    pixels = image.pil()
    width, height = pixels.size
    width, height = max(width, MINIMUM_SIDE), max(height, MINIMUM_SIDE)
    width = min(width, int(height * MAXIMUM_ASPECT_RATIO))
    height = min(height, int(width * MAXIMUM_ASPECT_RATIO))
    if (width, height) == pixels.size:
        return image
    return EncodedImage.from_pil(pixels.resize((width, height), Image.Resampling.LANCZOS))
