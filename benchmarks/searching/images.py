"""The image cache: looking one image up among many."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.search.contracts import ImageResult
from deepeyes_plugins.search.image_cache import ImageCache, ImageCacheWriter

from .measures import Figure, Taken, measure
from .pictures import photo

IMAGES = 100_000
REAL = 40
"""Images that are looked up; the others are rows with random hashes, since only their number
matters."""


@measure(
    Figure("image_file", "image by its file among 100,000", "ms", 10),
    Figure("image_pixels", "… by its pixels, 320 x 240", "ms", 10),
    Figure("image_likeness", "… by its look, 160 x 120", "ms", 10),
)
async def images(quick: bool) -> Taken:
    """Look images up whose file, pixels or look is known; decoding and hashing included."""
    pictures = [photo(seed) for seed in range(REAL)]
    files = [EncodedImage.from_pil(picture) for picture in pictures]
    asked = {
        "file": files,
        "pixels": [EncodedImage(_recompressed(picture)) for picture in pictures],
        "likeness": [
            EncodedImage.from_pil(picture.resize((picture.width // 2, picture.height // 2)))
            for picture in pictures
        ],
    }
    samples: dict[str, list[float]] = {f"image_{way}": [] for way in asked}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.sqlite"
        _write(path, files)
        cache = ImageCache(path)
        for way, pictures_asked in asked.items():
            for _ in range(1 if quick else 10):
                for number, image in enumerate(pictures_asked):
                    fresh = EncodedImage(image.data)  # Nothing about it is known.
                    started = time.perf_counter()
                    found = cache.find(fresh, distance=8)
                    samples[f"image_{way}"].append((time.perf_counter() - started) * 1000)
                    assert found is not None and found.way == way, found
                    assert found.data_id == f"real-{number}"
    return Taken(samples)


def _recompressed(picture: Image.Image) -> bytes:
    """The same pixels in another file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def _write(path: Path, files: list[EncodedImage]) -> None:
    chance = np.random.default_rng(0)
    thumbnail = EncodedImage.from_pil(photo(999, (64, 64)))
    with ImageCacheWriter(path) as writer:
        for number, image in enumerate(files):
            name = f"real-{number}"
            writer.answer(name, [ImageResult(f"Title {number}", thumbnail)] * 5)
            writer.question(name, image)
        for number in range(len(files), IMAGES):
            name = f"row-{number}"
            writer.answer(name, [ImageResult(f"Title {number}", thumbnail)])
            known = f"{number:064x}"
            writer.hashes(name, known, known, int(chance.integers(0, 1 << 63)))
