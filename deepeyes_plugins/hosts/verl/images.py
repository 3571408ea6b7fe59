"""Decode images off the event loop, each once for the sixteen rollouts of a prompt."""

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
"""What the cache holds on to: the images of about 32 live prompts, in the size of the model."""

MOST_THREADS = 4
"""Each thread holds one original while it works: 48 MB for 12 megapixels."""

_SMALL_FILE = 64 << 10
"""Bytes that are hashed faster than another thread is asked to do it."""


class ModelImages:
    """Decodes and resizes in threads of its own, each image once.

    Its threads are few, so that a batch of large images neither fills the memory with originals
    nor keeps the event loop from running; and they are its own, so that short work elsewhere does
    not queue behind them.
    """

    def __init__(self, cache_bytes: int = CACHE_BYTES, threads: int | None = None) -> None:
        """Start with an empty cache and no thread.

        Args:
            cache_bytes: Decoded bytes to keep, least recently used out first.
            threads: Images in work at once; by default one per core, four at most.
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
        """Return the images in the size of the model, in order.

        Raises:
            ImageError: One of them cannot be decoded.
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
            # Not under the lock, which the callback takes: it runs here if the work is done.
            work.add_done_callback(lambda done: self._keep(key, done))
        # The others still want it when this trajectory is cancelled.
        return await asyncio.shield(asyncio.wrap_future(work))

    def _keep(self, key: tuple[str, ImageBounds], done: Future[Image.Image]) -> None:
        with self._lock:
            self._in_work.pop(key, None)
            failed = done.cancelled() or done.exception() is not None
            if not failed and _decoded_bytes(done.result()) <= self._ready.maxsize:
                self._ready[key] = done.result()


@lru_cache(maxsize=1)
def shared_images() -> ModelImages:
    """The one of this process, made on first use."""
    return ModelImages()


def _decoded_bytes(image: Image.Image) -> int:
    """Pillow takes four bytes for a pixel of an RGB image."""
    return 4 * image.width * image.height
