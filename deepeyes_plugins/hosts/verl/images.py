"""Image cache: decodes and resizes in threads, each image once for all rollouts of a prompt."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

from cachetools import LRUCache
from PIL import Image

from deepeyes_plugins.hosts.transformers.images import ImageBounds, model_image
from deepeyes_plugins.protocol.content import EncodedImage

CACHE_BYTES = 512 << 20
"""Cache size: the resized images of about 32 live prompts."""

MOST_THREADS = 4
"""Maximum threads; each holds one original while it works, 48 MB for 12 megapixels."""

_SMALL_FILE = 64 << 10
"""File size in bytes up to which hashing is faster than dispatching to a thread."""


class ModelImages:
    """Decodes and resizes images in its own threads, each image once.

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
        self._in_work: dict[tuple[str, ImageBounds], Future[Image.Image]] = {}
        self._lock = threading.Lock()
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
        with self._lock:
            found = self._ready.get(key)
            if found is not None:
                return found
            work = self._in_work.get(key)
            mine = work is None
            if work is None:
                work = self._threads.submit(model_image, image, bounds)
                self._in_work[key] = work
        if mine:
            # Outside the lock, which the callback takes: it runs here if the work is done.
            work.add_done_callback(lambda done: self._store(key, done))
        # Shielded, as other trajectories may wait for it when this one is cancelled.
        return await asyncio.shield(asyncio.wrap_future(work))

    def _store(self, key: tuple[str, ImageBounds], done: Future[Image.Image]) -> None:
        with self._lock:
            self._in_work.pop(key, None)
            failed = done.cancelled() or done.exception() is not None
            if not failed and _decoded_bytes(done.result()) <= self._ready.maxsize:
                self._ready[key] = done.result()


@lru_cache(maxsize=1)
def shared_images() -> ModelImages:
    """Return the cache of this process, created on first use."""
    return ModelImages()


def _decoded_bytes(image: Image.Image) -> int:
    """Return the memory of an RGB image; Pillow uses four bytes per pixel."""
    return 4 * image.width * image.height
