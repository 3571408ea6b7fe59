"""Tells whether two images are the same, or nearly so."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
from PIL import Image

_SIDE = 32
_KEPT = 8
_FLAT = 2.0
"""Standard deviation in grey levels below which an image has nothing to tell it from others."""

Hashes = np.ndarray
"""Perceptual hashes, shape (images,), dtype uint64."""


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of the size and the RGB pixels: the same for any lossless file of an image."""
    digest = hashlib.sha256(f"{image.width}x{image.height} ".encode())
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def perceptual_hash(image: Image.Image) -> int | None:
    """64 bits of the coarse structure: near for scaled, recompressed or slightly altered images.

    The customary pHash: the 8 x 8 lowest frequencies of the cosine transform of the image scaled to
    32 x 32 grey pixels, each against their median. (The library for it would bring SciPy and
    wavelets for these lines.)

    Returns:
        The bits, or ``None`` for an image of one tone, which would be like any other such.
    """
    grey = np.asarray(
        image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64
    )
    if grey.std() < _FLAT:
        return None
    waves = _waves()
    low = (waves @ grey @ waves.T).ravel()
    # The first is the mean brightness, which says nothing about structure.
    bits = low > np.median(low[1:])
    return int(np.packbits(bits).view(">u8")[0])


def nearest(hashes: Hashes, wanted: int) -> tuple[int, int]:
    """Find the hash that differs from ``wanted`` in the fewest bits; of several, the first.

    Returns:
        Its place and the number of bits.
    """
    distances = np.bitwise_count(hashes ^ np.uint64(wanted))
    place = int(distances.argmin())
    return place, int(distances[place])


@cache
def _waves() -> np.ndarray:
    """The lowest cosines, shape (8, 32)."""
    frequency, position = np.arange(_KEPT)[:, None], np.arange(_SIDE)[None, :]
    return np.cos(np.pi * frequency * (2 * position + 1) / (2 * _SIDE))
