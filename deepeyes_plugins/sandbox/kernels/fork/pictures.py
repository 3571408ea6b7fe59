"""Images that sessions share: decoded once by an isolated process, into sealed memory."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deepeyes_plugins.remote.single_flight import SingleFlight
from deepeyes_plugins.sandbox.kernels.contract import ImageRejected, ImagesMissing
from deepeyes_plugins.sandbox.kernels.fork import wire
from deepeyes_plugins.sandbox.kernels.fork.memory import UNCHANGEABLE, memfd, seal
from deepeyes_plugins.sandbox.kernels.fork.process import Child
from deepeyes_plugins.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)

_DECODE_SECONDS = 60.0


@dataclass(frozen=True)
class SharedImage:
    """Image in sealed memory.

    Attributes:
        metadata: Metadata for ``images.attach``.
        memory: File descriptor of the pixels, or of the encoded file if it is decoded lazily.
        size: Size of the memory in bytes.
    """

    metadata: dict[str, Any]
    memory: int
    size: int


class SharedImages:
    """LRU cache of shared images by hash."""

    def __init__(
        self, settings: SandboxSettings, make_decoder: Callable[[], Awaitable[Child]]
    ) -> None:
        """Initialize an empty cache.

        Args:
            settings: Limits.
            make_decoder: Forks the isolated decoder process.
        """
        self._settings = settings
        self._make_decoder = make_decoder
        self._images: OrderedDict[str, SharedImage] = OrderedDict()
        self._decoding: SingleFlight[str, None] = SingleFlight()
        self._decoder: Child | None = None
        self._decoder_lock = asyncio.Lock()

    def take(self, digests: Sequence[str]) -> list[SharedImage]:
        """Return images with duplicated descriptors, which the caller must close.

        Raises:
            ImagesMissing: Some are not in the cache.
        """
        missing = sorted({digest for digest in digests if digest not in self._images})
        if missing:
            raise ImagesMissing(missing)
        for digest in digests:
            self._images.move_to_end(digest)
        images = [self._images[digest] for digest in digests]
        return [SharedImage(one.metadata, os.dup(one.memory), one.size) for one in images]

    async def add(self, digest: str, data: bytes) -> None:
        """Decode an image and add it; concurrent calls for the same image share the work.

        Raises:
            ImageRejected: It is not a valid image.
        """
        if digest in self._images:
            return
        await self._decoding.run(digest, lambda: self._decode_and_add(digest, data))

    async def _decode_and_add(self, digest: str, data: bytes) -> None:
        async with self._decoder_lock:
            # A decoder may have died with its zygote; if it dies twice, the cause is the image.
            image = await self._try_decode(data) or await self._try_decode(data)
        if image is None:
            raise ImageRejected("the image could not be decoded: it crashed or stalled its decoder")
        self._images[digest] = image
        total_bytes = sum(image.size for image in self._images.values())
        while total_bytes > self._settings.image_cache_mb << 20 and len(self._images) > 1:
            _, oldest = self._images.popitem(last=False)
            os.close(oldest.memory)
            total_bytes -= oldest.size

    async def _try_decode(self, data: bytes) -> SharedImage | None:
        if self._decoder is None:
            self._decoder = await self._make_decoder()
            self._decoder.conn.settimeout(_DECODE_SECONDS)
        try:
            return await asyncio.to_thread(_decode, self._decoder.conn, data, self._settings)
        except (OSError, wire.WireError) as error:
            logger.warning("the image decoder failed: %s", error)
            decoder, self._decoder = self._decoder, None
            await decoder.end()
            return None

    async def close(self) -> None:
        """Stop the decoder and release all images; sessions still have theirs."""
        if self._decoder is not None:
            await self._decoder.end()
            self._decoder = None
        for image in self._images.values():
            os.close(image.memory)
        self._images.clear()


def _decode(conn: socket.socket, data: bytes, settings: SandboxSettings) -> SharedImage:
    """Decode an image in the isolated decoder process. Blocks.

    Raises:
        ImageRejected: The decoder rejects the image.
        OSError, WireError: The decoder died or did not respond.
    """
    with memfd("image") as source, memfd("pixels") as target:
        with open(source, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(source, 0, os.SEEK_SET)
        request = {"max_pixels": settings.max_image_pixels, "lazy_pixels": settings.lazy_pixels}
        socket.send_fds(conn, [wire.pack(request)], [source, target])
        received = wire.receive(conn)
        if received is None:
            raise wire.WireError("the decoder has exited")
        reply, descriptors = received
        if descriptors or not isinstance(reply, dict) or len(reply) != 1:
            # A compromised decoder must not exhaust the file descriptors of this process.
            for descriptor in descriptors:
                os.close(descriptor)
            raise wire.WireError("the decoder sent an invalid reply")
        if "refused" in reply:
            raise ImageRejected(str(reply["refused"]))
        memory = target if "image" in reply else source
        # From here on, neither the decoder nor a session can change it.
        seal(memory, UNCHANGEABLE)
        metadata = reply.get("image") or {"lazy": True}
        return SharedImage(metadata, os.dup(memory), os.fstat(memory).st_size)
