"""Image cache: decodes and resizes in threads, each image once for all rollouts of a prompt."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from cachetools import LRUCache
from PIL import Image

from deepeyes_plugins.hosts.transformers.images import ImageBounds, model_image
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.remote.single_flight import SingleFlight

CACHE_BYTES = 512 << 20
"""Cache size: the resized images of about 32 live prompts."""

MOST_THREADS = 4
"""Maximum threads; each holds one original while it works, 48 MB for 12 megapixels."""

_SMALL_FILE = 64 << 10
"""File size in bytes up to which hashing is faster than dispatching to a thread."""


class ModelImages:
    """Decodes and resizes images in its own threads, each image once; for one event loop.

    The number of threads is limited, so that a batch of large images neither fills the memory with
    originals nor starves the event loop. The threads are separate from the default executor, so
    that short tasks there do not queue behind images.
    """

    def __init__(self, cache_bytes: int = CACHE_BYTES, threads: int | None = None) -> None:
        """Create an empty cache.

        Args:
            cache_bytes: Maximum decoded bytes; least recently used images are evicted.
            threads: Number of threads; by default one per core, at most four.
        """
        self._ready: LRUCache[tuple[str, ImageBounds], Image.Image] = LRUCache(
            cache_bytes, getsizeof=_decoded_bytes
        )
        self._decoding: SingleFlight[tuple[str, ImageBounds], Image.Image] = SingleFlight()
        self._threads = ThreadPoolExecutor(
            threads or min(MOST_THREADS, os.cpu_count() or 1), "deepeyes-images"
        )

    async def get(self, images: Sequence[EncodedImage], bounds: ImageBounds) -> list[Image.Image]:
        """Return the resized images, in order.

        Raises:
            ImageError: An image cannot be decoded.
        """
        return list(await asyncio.gather(*(self._one(image, bounds) for image in images)))

    async def _one(self, image: EncodedImage, bounds: ImageBounds) -> Image.Image:
        loop = asyncio.get_running_loop()
        if len(image.data) > _SMALL_FILE:
            await loop.run_in_executor(self._threads, getattr, image, "sha256")
        key = image.sha256, bounds
        if (found := self._ready.get(key)) is not None:
            return found

        async def decode() -> Image.Image:
            resized = await loop.run_in_executor(self._threads, model_image, image, bounds)
            if _decoded_bytes(resized) <= self._ready.maxsize:
                self._ready[key] = resized
            return resized

        return await self._decoding.run(key, decode)


@lru_cache(maxsize=1)
def shared_images() -> ModelImages:
    """Return the cache of this process, created on first use."""
    return ModelImages()


def _decoded_bytes(image: Image.Image) -> int:
    """Return the memory of an RGB image; Pillow uses four bytes per pixel."""
    return 4 * image.width * image.height
