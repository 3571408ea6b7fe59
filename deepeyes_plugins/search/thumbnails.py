"""Images from the net, made fit for the model and for a cache."""

from __future__ import annotations

import io

from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage, ImageError, fit_for_model

LONGEST_SIDE = 768
"""Pixels; thumbnails of Google Lens have about 200."""
MOST_PIXELS = 50_000_000
"""Above that an image is not decoded: what shows up small is nothing that is worth 150 MB."""
_MOST_BYTES = 1 << 20
_JPEG_QUALITY = 90


def thumbnail(data: bytes, longest_side: int = LONGEST_SIDE) -> EncodedImage:
    """Bring an image within the limits of the protocol and of a size.

    Args:
        data: The file.
        longest_side: Pixels; a larger image is scaled down. One that fits stays as it is.

    Raises:
        ImageError: It is no readable image, or one of too many pixels to decode.
    """
    image = EncodedImage(data)
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ImageError(f"image of {width} x {height} pixels is too large for a thumbnail")
    if max(width, height) > longest_side or len(data) > _MOST_BYTES:
        pixels = image.pil()
        pixels.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        pixels.save(buffer, "JPEG", quality=_JPEG_QUALITY)
        image = EncodedImage(buffer.getvalue())
    return fit_for_model(image)
