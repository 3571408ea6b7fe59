"""The image cache: looking one image up among many."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.search.contracts import ImageResult
from deepeyes_plugins.search.image_cache import ImageCache, ImageCacheWriter

from .figures import Figure, percentile
from .pictures import photo

IMAGES = 100_000
REAL = 40
"""Images that are looked up and stored as they are; the others are rows with random hashes, since
only their number matters."""
ROUNDS = 5


def measure(folder: Path) -> list[Figure]:
    path = folder / f"images-{IMAGES}.sqlite"
    pictures = [photo(seed) for seed in range(REAL)]
    files = [EncodedImage.from_pil(picture) for picture in pictures]
    if not path.exists():
        _write(path, files)
    cache = ImageCache(path)
    # The same images, half the size: found by their likeness only.
    small = [
        EncodedImage.from_pil(picture.resize((picture.width // 2, picture.height // 2)))
        for picture in pictures
    ]
    ways = {"file": files, "likeness": small}
    figures = []
    for way, images in ways.items():
        samples = []
        for _ in range(ROUNDS):
            for number, image in enumerate(images):
                fresh = EncodedImage(image.data)  # Nothing about it is known.
                started = time.perf_counter()
                found = cache.find(fresh, distance=8)
                samples.append((time.perf_counter() - started) * 1000)
                if found is None or found.way != way or found.data_id != f"real-{number}":
                    raise SystemExit(f"image {number} was not found by its {way}: {found}")
        title = f"image by its {way} among {IMAGES:,}, p95"
        figures.append(Figure(f"image_{way}", title, "ms", percentile(samples, 0.95), 10))
    return figures


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
            writer.fingerprint(
                name, f"{number:064x}", f"{number:064x}", int(chance.integers(0, 1 << 63))
            )
