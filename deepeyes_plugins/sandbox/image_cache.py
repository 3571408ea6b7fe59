"""Image cache of the sandbox server: encoded images by hash, pinned while sessions use them."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence

from deepeyes_plugins.sandbox.kernels.contract import ImagesMissing, Kernel, KernelProvider
from deepeyes_plugins.sandbox.snapshots import SnapshotStore, StoreUnavailable

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 3


class ImageCache:
    """Encoded images by hash; those of live and evicted sessions are never dropped."""

    def __init__(
        self,
        provider: KernelProvider,
        store: SnapshotStore,
        max_bytes: int,
    ) -> None:
        """Initialize an empty cache.

        Args:
            provider: Makes the kernels that see the images.
            store: Has the images of sessions from other servers.
            max_bytes: Size above which images without sessions are dropped.
        """
        self._provider = provider
        self._store = store
        self._max_bytes = max_bytes
        self._images: OrderedDict[str, bytes] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self.bytes = 0

    def get(self, digest: str) -> bytes | None:
        """Return the encoded image, if it is in the cache."""
        return self._images.get(digest)

    async def add(self, digest: str, data: bytes) -> None:
        """Add an image.

        Raises:
            ImageRejected: It is not a valid image.
        """
        await self._provider.add_image(digest, data)
        if digest not in self._images:
            self._images[digest] = data
            self.bytes += len(data)
            self._trim()
        self._images.move_to_end(digest)

    def _trim(self) -> None:
        for digest in [digest for digest in self._images if not self._pins[digest]]:
            if self.bytes <= self._max_bytes or len(self._images) == 1:
                break
            self.bytes -= len(self._images.pop(digest))

    async def open(self, digests: Sequence[str]) -> Kernel:
        """Start a kernel that sees the images, also those that the provider has dropped.

        Raises:
            ImagesMissing: Some are neither here nor in the store.
            SandboxUnavailable: No kernel can be started now.
        """
        for _ in range(_MAX_ATTEMPTS):
            try:
                return await self._provider.open(digests)
            except ImagesMissing as error:
                missing = [digest for digest in error.digests if not await self._reload(digest)]
                if missing:
                    raise ImagesMissing(missing) from None
        return await self._provider.open(digests)

    async def _reload(self, digest: str) -> bool:
        data = self._images.get(digest)
        if data is None:
            try:
                data = await self._store.image(digest)
            except StoreUnavailable as error:
                logger.warning("image %s could not be looked up: %s", digest, error)
        if data is None:
            return False
        await self.add(digest, data)
        return True

    def pin(self, digests: Sequence[str]) -> None:
        """Protect a session's images from being dropped."""
        self._pins.update(set(digests))

    def unpin(self, digests: Sequence[str]) -> None:
        """Release a session's images."""
        self._pins.subtract(set(digests))
        for digest in set(digests):
            if self._pins[digest] <= 0:
                del self._pins[digest]
        self._trim()

    async def share(self, digests: Sequence[str]) -> None:
        """Write a session's images to the store, for other servers.

        Raises:
            StoreUnavailable: The store does not respond.
        """
        for digest in set(digests):
            data = self._images.get(digest)
            if data is not None:
                await self._store.put_image(digest, data)
