"""Image codecs of sessions: decoding to shared pixels, and PNG encoding."""

from __future__ import annotations

import io
import mmap
import os
import struct
import zlib
from typing import Any, Final, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from deepeyes_plugins.protocol.pixels import is_8bit, to_8bit
from deepeyes_plugins.sandbox.kernels.output import PNG_SIGNATURE

INPUT_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Accepted formats: none whose decoder starts programs or interprets scripts.

MPO, a JPEG file with further images, is read as JPEG.
"""

# Modes whose pixels Pillow can use without a copy, with their memory layout.
_SHARED_LAYOUTS = {"RGB": "RGBX", "RGBA": "RGBA", "L": "L"}
_MAX_INFO_BYTES = 64 << 10
_PNG_COLOUR_TYPES = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}
# Pixels are copied in bands that fit into the CPU cache, which takes a fifth of the time.
_BAND_ROWS = 64
# Deflate takes 3 ms for a figure and reduces it to a twentieth. For a photo it takes tens of
# milliseconds per megapixel and saves less than half, which is slower than a network of 1 Gbit/s.
_COMPRESSED = 1
_DRAWING_RATIO = 0.3
_SAMPLES, _SAMPLE_BYTES = 8, 64 << 10
_MAX_STORED_BYTES = 16 << 20
_FILTER_NONE, _FILTER_UP = 0, 2

_Rows: TypeAlias = "np.ndarray[tuple[int, int], np.dtype[np.uint8]]"


class ImageRefused(Exception):
    """An image cannot be used; the message says why."""


def decode_into(
    source: int, target: int, max_pixels: int, lazy_pixels: int
) -> dict[str, Any] | None:
    """Decode an image file and write its pixels to memory that several sessions can map.

    The pixels have 8 bits per channel and the mode L, LA, RGB or RGBA.

    Args:
        source: File descriptor of the encoded image.
        target: File descriptor that receives the pixels.
        max_pixels: Maximum number of pixels.
        lazy_pixels: Number of pixels above which an 8-bit image is not decoded here, but by each
            session that uses it.

    Returns:
        The metadata for ``attach``; None if the image was not decoded.

    Raises:
        ImageRefused: Not an image, not an accepted format, or too large.
    """
    try:
        with (
            open(source, "rb", closefd=False) as file,
            Image.open(file, formats=INPUT_FORMATS) as im,
        ):
            if im.width * im.height > max_pixels:
                raise ImageRefused(
                    f"the image has {im.width}x{im.height} pixels; at most {max_pixels} are allowed"
                )
            if im.width * im.height > lazy_pixels and is_8bit(im):
                return None
            im.load()
            seen = to_8bit(im)
            layout = _SHARED_LAYOUTS.get(seen.mode, seen.mode)
            for top in range(0, seen.height, _BAND_ROWS):
                band = seen.crop((0, top, seen.width, min(top + _BAND_ROWS, seen.height)))
                _write(target, band.tobytes("raw", layout))
            metadata = {
                "mode": seen.mode,
                "layout": layout,
                "size": list(seen.size),
                "format": im.format,
                "info": _plain_metadata(seen.info),
            }
    except ImageRefused:
        raise
    except Exception as error:
        known = ", ".join(INPUT_FORMATS)
        raise ImageRefused(f"not a readable image{reason(error)}; accepted are {known}") from error
    return metadata


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def attach(metadata: dict[str, Any], descriptor: int) -> Image.Image:
    """Make a Pillow image of shared pixels, without a copy if Pillow supports it.

    Pillow copies such an image before it changes it in place, so sessions never see each other's
    changes. The server has sealed the pages in any case.

    Args:
        metadata: Result of ``decode_into``, or ``{"lazy": True}`` for an encoded file.
        descriptor: File descriptor of the pixels or of the file; closed with the image.
    """
    if "lazy" in metadata:
        Image.MAX_IMAGE_PIXELS = None  # The server has checked the size.
        return Image.open(open(descriptor, "rb"), formats=INPUT_FORMATS)
    mode, layout, size = metadata["mode"], metadata["layout"], tuple(metadata["size"])
    with open(descriptor, "rb") as file:
        # Pillow accepts any buffer, but its annotations require bytes.
        pixels: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if mode in _SHARED_LAYOUTS:
        image = Image.frombuffer(layout, size, pixels, "raw", layout, 0, 1)
        if mode != layout:
            image.im.setmode(mode)
            image = image._new(image.im)
            image.readonly = 1
    else:
        image = Image.frombytes(mode, size, pixels, "raw", layout)
    image.format = metadata["format"]
    image.info = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in metadata["info"].items()
    }
    return image


def refuse_empty(width: int, height: int) -> None:
    """Reject an image without pixels, with a message for the model.

    Raises:
        ValueError: It has no width or no height.
    """
    if not width or not height:
        missing = "height" if width else "width"
        raise ValueError(
            f"the image is empty: {width} x {height} pixels, it has no {missing}. A crop "
            "(x1, y1, x2, y2) needs x1 < x2 and y1 < y2"
        )


def encode_png(image: Image.Image) -> bytes:
    """Encode any Pillow image as PNG, for speed rather than size.

    Raises:
        ValueError: The image is empty.
    """
    refuse_empty(*image.size)
    image = to_8bit(image)
    return encode_pixels(image.tobytes(), *image.size, image.mode)


def encode_pixels(pixels: bytes | memoryview, width: int, height: int, mode: str) -> bytes:
    """Encode pixels as PNG, for speed rather than size.

    Drawings are compressed, which is fast and effective; photos are stored uncompressed.

    Args:
        pixels: 8 bits per channel, row by row.
        width: Width in pixels.
        height: Height in pixels.
        mode: Pillow's mode: L, LA, RGB or RGBA.
    """
    rows = np.frombuffer(pixels, np.uint8).reshape(height, width * len(mode))
    header = struct.pack("!IIBBBBB", width, height, 8, _PNG_COLOUR_TYPES[mode], 0, 0, 0)
    level = _COMPRESSED if rows.nbytes > _MAX_STORED_BYTES or _is_drawing(rows) else 0
    return b"".join(
        (
            PNG_SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(_lines(rows, level), level)),
            _chunk(b"IEND", b""),
        )
    )


def _is_drawing(rows: _Rows) -> bool:
    """Return whether samples from the whole image compress well."""
    height, row = rows.shape
    strip = max(2, _SAMPLE_BYTES // _SAMPLES // max(row, 1))
    starts = range(0, max(1, height - strip), max(strip, height // _SAMPLES))
    sample = b"".join(_lines(rows[at : at + strip], _COMPRESSED) for at in starts)
    return len(zlib.compress(sample, _COMPRESSED)) < _DRAWING_RATIO * len(sample)


def _lines(rows: _Rows, level: int) -> bytes:
    """Prefix each row with its PNG filter type, and apply the filter."""
    lines = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    if level == 0:
        lines[:, 0] = _FILTER_NONE
        lines[:, 1:] = rows
    else:
        # The difference to the row above: cheap, and the best filter for drawings.
        lines[:, 0] = _FILTER_UP
        lines[:1, 1:] = rows[:1]
        np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
    return lines.tobytes()


def as_png(data: bytes) -> bytes:
    """Convert an encoded image that user code displayed to PNG.

    Raises:
        ImageRefused: The bytes are not a valid image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=INPUT_FORMATS) as image:
            if image.format != "PNG":
                return encode_png(image)
            image.verify()  # Checks the checksums only, without decoding.
            return data
    except Exception as error:
        raise ImageRefused(f"displayed data is not a readable image{reason(error)}") from error


def reason(error: Exception) -> str:
    """Format Pillow's error; it is empty for unknown formats, where it has only an address."""
    return "" if isinstance(error, UnidentifiedImageError) else f": {error}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((struct.pack("!I", len(data)), kind, data, struct.pack("!I", checksum)))


def _plain_metadata(info: dict[Any, Any]) -> dict[str, Any]:
    """Return the serializable metadata: EXIF, resolution, colour profile, transparency."""

    def plain(value: object) -> bool:
        if isinstance(value, tuple):
            return all(isinstance(item, int | float) for item in value)
        if isinstance(value, bytes | str):
            return len(value) <= _MAX_INFO_BYTES
        return isinstance(value, int | float)

    return {key: value for key, value in info.items() if isinstance(key, str) and plain(value)}
