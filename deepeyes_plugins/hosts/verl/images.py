"""Bring images to the size that the model's processor would give them.

Engines and trainer get small images instead of originals; the processor's own resizing is then
the identity. The sixteen rollouts of a prompt share one decoded image, also when they all ask at
the same moment.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from deepeyes_plugins.protocol.content import EncodedImage

CACHE_BYTES = 512 << 20
"""What the cache holds on to: the images of about 32 live prompts, in the size of the model."""

MOST_THREADS = 4
"""Each thread holds one original while it works: 48 MB for 12 megapixels."""

_SMALL_FILE = 64 << 10
"""Bytes that are hashed faster than another thread is asked to do it."""


class ImageBounds(NamedTuple):
    """What a processor allows: side multiple in pixels, least and most pixels."""

    factor: int
    minimum: int
    maximum: int


def image_bounds(image_processor: Any, overrides: Mapping[str, Any]) -> ImageBounds:
    """Read the bounds of a Qwen-VL image processor.

    Args:
        image_processor: Of the model; its patches have 14 pixels (Qwen2.5-VL) or 16 (Qwen3-VL).
        overrides: verl's ``data.mm_processor_kwargs``; ``min_pixels`` and ``max_pixels`` win.
    """
    size = overrides.get("size") or image_processor.size
    minimum = overrides.get("min_pixels") or size["shortest_edge"]
    maximum = overrides.get("max_pixels") or size["longest_edge"]
    factor = image_processor.patch_size * image_processor.merge_size
    return ImageBounds(factor, int(minimum), int(maximum))


def model_size(size: tuple[int, int], bounds: ImageBounds) -> tuple[int, int]:
    """Width and height in pixels of an image as the model sees it.

    Raises:
        ValueError: Its aspect ratio is over 200.
    """
    width, height = size
    height, width = smart_resize(height, width, bounds.factor, bounds.minimum, bounds.maximum)
    return width, height


def image_tokens(size: tuple[int, int], bounds: ImageBounds) -> int:
    """Placeholders that the processor gives an image of ``size``, width and height in pixels.

    It resizes once more. That changes nothing unless the bounds are so close that no size is
    within them.

    Raises:
        ValueError: Its aspect ratio is over 200.
    """
    width, height = model_size(size, bounds)
    return (width // bounds.factor) * (height // bounds.factor)


def model_image(image: EncodedImage, bounds: ImageBounds) -> Image.Image:
    """Decode and resize, to the very pixels that the processor would make of the original.

    Raises:
        ImageError: The image cannot be decoded.
        ValueError: Its aspect ratio is over 200.
    """
    picture = image.pil()
    width, height = model_size(picture.size, bounds)
    if (width, height) == picture.size:
        return picture
    # As the processor does it; Pillow's own takes two to five times as long.
    pixels = functional.resize(
        functional.pil_to_tensor(picture),
        [height, width],
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    return functional.to_pil_image(pixels)


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
        self._room = cache_bytes
        self._ready: OrderedDict[tuple[str, ImageBounds], Image.Image] = OrderedDict()
        self._in_work: dict[tuple[str, ImageBounds], Future[Image.Image]] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(
            threads or min(MOST_THREADS, os.cpu_count() or 1), "deepeyes-images"
        )

    async def get(self, images: Sequence[EncodedImage], bounds: ImageBounds) -> list[Image.Image]:
        """Return the images in the size of the model, in order.

        Raises:
            ImageError: One of them cannot be decoded.
            ValueError: The aspect ratio of one is over 200.
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
                self._ready.move_to_end(key)
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
            if done.cancelled() or done.exception() is not None:
                return
            self._ready[key] = done.result()
            self._room -= _decoded_bytes(done.result())
            while self._room < 0:
                _, oldest = self._ready.popitem(last=False)
                self._room += _decoded_bytes(oldest)


@lru_cache(maxsize=1)
def shared_images() -> ModelImages:
    """The one of this process, made on first use."""
    return ModelImages()


def _decoded_bytes(image: Image.Image) -> int:
    """Pillow takes four bytes for a pixel of an RGB image."""
    return 4 * image.width * image.height
