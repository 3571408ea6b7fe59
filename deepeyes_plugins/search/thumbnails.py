"""Thumbnails within the limits of the model and of the image cache."""

from __future__ import annotations

import io

from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage, ImageError, fit_for_model

LONGEST_SIDE = 768
"""Maximum side in pixels; thumbnails of Google Lens have about 200."""
MOST_PIXELS = 50_000_000
"""Maximum pixels of an image to decode, which then takes 150 MB."""
_MOST_BYTES = 1 << 20
_JPEG_QUALITY = 90


def thumbnail(data: bytes, longest_side: int = LONGEST_SIDE) -> EncodedImage:
    """Scale an image down to the limits of the protocol and to a maximum side.

    Args:
        data: The file.
        longest_side: Maximum side in pixels. A smaller image is returned unchanged.

    Raises:
        ImageError: The image cannot be read, or has too many pixels to decode.
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
