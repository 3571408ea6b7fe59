"""The encoded images of a server's sessions: uploaded once, there while they are needed."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from deepeyes_plugins.sandbox.kernels.contract import ImagesMissing, Kernel, KernelProvider
from deepeyes_plugins.sandbox.snapshots import SnapshotStore, StoreUnavailable

logger = logging.getLogger(__name__)

_ROUNDS = 3


class HeldImages:
    """Encoded images by their hash; those of live and stored sessions are never dropped."""

    def __init__(
        self,
        provider: KernelProvider,
        store: SnapshotStore,
        max_bytes: int,
        elsewhere: Callable[[str], Awaitable[bytes | None]] | None = None,
    ) -> None:
        """Hold none.

        Args:
            provider: Makes the kernels that see the images.
            store: May have images of sessions from other servers.
            max_bytes: Size over which images without sessions are dropped.
            elsewhere: Asks the other workers of this server for an image.
        """
        self._provider = provider
        self._store = store
        self._max_bytes = max_bytes
        self._elsewhere = elsewhere
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self.bytes = 0

    def get(self, digest: str) -> bytes | None:
        """The encoded image, if it is held."""
        return self._held.get(digest)

    async def add(self, digest: str, data: bytes) -> None:
        """Hold an image.

        Raises:
            ImageRejected: It is none that sessions can have.
        """
        await self._provider.add_image(digest, data)
        if digest not in self._held:
            self._held[digest] = data
            self.bytes += len(data)
            self._trim()
        self._held.move_to_end(digest)

    def _trim(self) -> None:
        for digest in [one for one in self._held if not self._pins[one]]:
            if self.bytes <= self._max_bytes or len(self._held) == 1:
                break
            self.bytes -= len(self._held.pop(digest))

    async def open(self, digests: Sequence[str]) -> Kernel:
        """Start a kernel that sees the images, whichever the provider has let go meanwhile.

        Raises:
            ImagesMissing: Nobody has some of them.
            SandboxUnavailable: No kernel can be started now.
        """
        for _ in range(_ROUNDS):
            try:
                return await self._provider.open(digests)
            except ImagesMissing as error:
                missing = [one for one in error.digests if not await self._bring_back(one)]
                if missing:
                    raise ImagesMissing(missing) from None
        return await self._provider.open(digests)

    async def _bring_back(self, digest: str) -> bool:
        data = self._held.get(digest)
        if data is None and self._elsewhere is not None:
            data = await self._elsewhere(digest)
        if data is None:
            try:
                data = await self._store.image(digest)
            except StoreUnavailable as error:
                logger.warning("image %s was not looked for: %s", digest, error)
        if data is None:
            return False
        await self.add(digest, data)
        return True

    def pin(self, digests: Sequence[str]) -> None:
        """Keep images for a session."""
        self._pins.update(set(digests))

    def unpin(self, digests: Sequence[str]) -> None:
        """Let go of a session's images."""
        self._pins.subtract(set(digests))
        for digest in set(digests):
            if self._pins[digest] <= 0:
                del self._pins[digest]
        self._trim()

    async def share(self, digests: Sequence[str]) -> None:
        """Put a session's images where other servers find them.

        Raises:
            StoreUnavailable: They could not be put there.
        """
        for digest in set(digests):
            data = self._held.get(digest)
            if data is not None:
                await self._store.put_image(digest, data)
