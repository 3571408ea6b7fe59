"""Test pictures like photos, made from a seed, and the comparison of two pictures."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image

SIZES = {1: (1152, 864), 12: (4000, 3000)}


@lru_cache(maxsize=4)
def photo(megapixels: int, seed: int) -> bytes:
    """Returns a PNG of 1 or 12 megapixels, large shapes with finer ones on them."""
    width, height = SIZES[megapixels]
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.int16)
    for cells, strength in ((6, 200), (40, 60), (250, 20)):
        coarse = random.integers(0, strength, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(smooth, np.int16)
    # The noise of a sensor, without which PNG would be far too small.
    total += random.integers(0, 4, total.shape, dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def size(picture: bytes) -> str:
    """Width and height of an encoded picture, in words."""
    return "{}x{}".format(*Image.open(io.BytesIO(picture)).size)


def difference(first: bytes, second: bytes) -> float:
    """Mean absolute difference of all channels of two pictures of one size, in units of 1/255."""
    one, other = (
        np.asarray(Image.open(io.BytesIO(picture)).convert("RGBA"), np.int16)
        for picture in (first, second)
    )
    return float(np.abs(one - other).mean())
