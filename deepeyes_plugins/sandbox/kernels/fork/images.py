"""Images in and out of a session: encoded bytes, shared pixels, PNG."""

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
"""What may be uploaded: no format whose reader starts programs or interprets scripts.

MPO, a JPEG file with more pictures behind it, is read as JPEG; Pillow has no reader of that name.
"""

# Modes whose pixels Pillow uses in place, by the layout in which they lie in memory.
_SHARED_LAYOUTS = {"RGB": "RGBX", "RGBA": "RGBA", "L": "L"}
_MAX_INFO_BYTES = 64 << 10
_PNG_COLOUR_TYPES = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}
# Pixels are copied in bands that fit into the processor's cache: a fifth of the time.
_BAND_ROWS = 64
# Deflate takes 3 ms for a figure and leaves a twentieth of it. A photo takes tens of milliseconds a
# megapixel and keeps more than half: even a network of 1 Gbit/s carries it faster as it is.
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
    """Decode an image file and writes its pixels where several sessions can map them.

    They are those that a person sees: 8 bits per channel, mode L, LA, RGB or RGBA.

    Args:
        source: File descriptor of the encoded image.
        target: File descriptor that receives the pixels.
        max_pixels: Largest area to accept.
        lazy_pixels: Area from which on an image is only looked at, and decoded by the sessions
            that use it, if its file has such pixels.

    Returns:
        What ``attach`` needs to make an image of the pixels; None if it was not decoded.

    Raises:
        ImageRefused: No image, a format that is not accepted, or too large.
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
    """Make a Pillow image of shared pixels, without a copy where Pillow can do so.

    Pillow copies such an image before it is changed in place, so sessions never see each other's
    drawings; the pages are sealed by the server in any case.

    Args:
        metadata: What ``decode_into`` returned, or ``{"lazy": True}`` for an encoded file.
        descriptor: File descriptor of the pixels or of the file; taken over.
    """
    if "lazy" in metadata:
        Image.MAX_IMAGE_PIXELS = None  # The server has looked at the size.
        return Image.open(open(descriptor, "rb"), formats=INPUT_FORMATS)
    mode, layout, size = metadata["mode"], metadata["layout"], tuple(metadata["size"])
    with open(descriptor, "rb") as file:
        # Pillow takes any buffer; its types say bytes.
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
    """Refuse an image without pixels, in words for the model.

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

    Drawings are compressed, which takes little time and leaves little; photos are stored.

    Args:
        pixels: Eight bits for each channel, row by row.
        width: Pixels in a row.
        height: Number of rows.
        mode: Pillow's name of the channels: L, LA, RGB or RGBA.
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
    """Whether a few strips, from all over the image, get much smaller by compression."""
    height, row = rows.shape
    strip = max(2, _SAMPLE_BYTES // _SAMPLES // max(row, 1))
    starts = range(0, max(1, height - strip), max(strip, height // _SAMPLES))
    sample = b"".join(_lines(rows[at : at + strip], _COMPRESSED) for at in starts)
    return len(zlib.compress(sample, _COMPRESSED)) < _DRAWING_RATIO * len(sample)


def _lines(rows: _Rows, level: int) -> bytes:
    """Put before each row the filter that PNG wants to be told."""
    lines = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    if level == 0:
        lines[:, 0] = _FILTER_NONE
        lines[:, 1:] = rows
    else:
        # The difference to the row above: nearly free, and the best filter for drawings.
        lines[:, 0] = _FILTER_UP
        lines[:1, 1:] = rows[:1]
        np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
    return lines.tobytes()


def as_png(data: bytes) -> bytes:
    """Turn an encoded image that user code displayed into PNG.

    Raises:
        ImageRefused: The bytes are no image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=INPUT_FORMATS) as image:
            if image.format != "PNG":
                return encode_png(image)
            image.verify()  # Checksums only: what is drawn here is shown as it is.
            return data
    except Exception as error:
        raise ImageRefused(f"displayed data is not a readable image{reason(error)}") from error


def reason(error: Exception) -> str:
    """Why Pillow does not read an image: where it knows no format, it names an address only."""
    return "" if isinstance(error, UnidentifiedImageError) else f": {error}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((struct.pack("!I", len(data)), kind, data, struct.pack("!I", checksum)))


def _plain_metadata(info: dict[Any, Any]) -> dict[str, Any]:
    """The plain part of an image's metadata: EXIF, resolution, colour profile, transparency."""

    def plain(value: object) -> bool:
        if isinstance(value, tuple):
            return all(isinstance(item, int | float) for item in value)
        if isinstance(value, bytes | str):
            return len(value) <= _MAX_INFO_BYTES
        return isinstance(value, int | float)

    return {key: value for key, value in info.items() if isinstance(key, str) and plain(value)}
