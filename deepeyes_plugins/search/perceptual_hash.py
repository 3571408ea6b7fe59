"""Pixel hashes and perceptual hashes of images, for exact and approximate matches."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
from PIL import Image

_SIDE = 32
_FREQUENCIES = 8
_MIN_DEVIATION = 2.0
"""Standard deviation in grey levels below which an image has no structure to hash."""

Hashes = np.ndarray
"""Perceptual hashes, shape (images,), dtype uint64."""


def pixel_hash(image: Image.Image) -> str:
    """Return the SHA-256 of size and RGB pixels, which all lossless files of an image share."""
    digest = hashlib.sha256(f"{image.width}x{image.height} ".encode())
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def perceptual_hash(image: Image.Image) -> int | None:
    """Return a 64-bit pHash, which scaling, recompression and small edits hardly change.

    The 8 x 8 lowest frequencies of the cosine transform of the image, scaled to 32 x 32 grey
    pixels, are compared with their median. (The library for it depends on SciPy and PyWavelets.)

    Returns:
        The hash, or ``None`` for an image of one tone, which would match any other such image.
    """
    grey = np.asarray(
        image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64
    )
    if grey.std() < _MIN_DEVIATION:
        return None
    cosines = _cosines()
    low = (cosines @ grey @ cosines.T).ravel()
    # The first coefficient is the mean brightness, not structure.
    bits = low > np.median(low[1:])
    return int(np.packbits(bits).view(">u8")[0])


def nearest(hashes: Hashes, wanted: int) -> tuple[int, int]:
    """Find the first hash that differs from ``wanted`` in the fewest bits.

    Returns:
        Its index and the number of bits.
    """
    distances = np.bitwise_count(hashes ^ np.uint64(wanted))
    index = int(distances.argmin())
    return index, int(distances[index])


@cache
def _cosines() -> np.ndarray:
    """Return the basis of the lowest frequencies, shape (8, 32)."""
    frequency, position = np.arange(_FREQUENCIES)[:, None], np.arange(_SIDE)[None, :]
    return np.cos(np.pi * frequency * (2 * position + 1) / (2 * _SIDE))
