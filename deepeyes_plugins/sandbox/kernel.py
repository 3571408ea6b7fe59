"""The kernel contract: what a session needs from the thing that runs its code.

The server knows kernels by these two protocols only; `zygote_kernel` holds the one that ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .contracts import ExecutionResult, SandboxError


class ImageRejected(SandboxError):
    """The bytes are no image that sessions can have; the message says why."""


class ImagesMissing(SandboxError):
    """Images that were asked for by their hash are not held.

    Attributes:
        digests: The SHA-256 hashes, in hexadecimal.
    """

    def __init__(self, digests: Sequence[str]) -> None:
        """Names the images by their hashes."""
        super().__init__(f"{len(digests)} images must be uploaded first")
        self.digests = list(digests)


class Kernel(Protocol):
    """Runs the cells of one session, with state that lives from cell to cell."""

    @property
    def alive(self) -> bool:
        """Whether the next cell can still run; False for good once False."""

    async def execute(self, code: str, timeout: float) -> ExecutionResult:
        """Runs one cell to its end. The caller runs one at a time.

        Args:
            code: Source text of the cell.
            timeout: Seconds after which the cell is interrupted.

        Returns:
            What happened, whatever the code did: this raises nothing on account of the code.
        """

    def interrupt(self) -> None:
        """Interrupts the running cell, which then ends with KeyboardInterrupt."""

    async def close(self) -> None:
        """Ends the kernel and removes all that it left, at once and at any time; idempotent."""


class KernelProvider(Protocol):
    """Makes kernels."""

    async def start(self) -> None:
        """Makes the provider ready.

        Raises:
            SandboxUnavailable: It cannot work here; the message says what to do.
        """

    async def add_image(self, digest: str, data: bytes) -> None:
        """Holds an image for kernels to come.

        Args:
            digest: SHA-256 of the data, in hexadecimal.
            data: An encoded image file.

        Raises:
            ImageRejected: The data is no usable image.
        """

    async def open(self, images: Sequence[str]) -> Kernel:
        """Starts a kernel whose cells see the images as image_1, image_2, and so on.

        Args:
            images: SHA-256 hashes of images that were added.

        Raises:
            ImagesMissing: Some are not held (any more).
            SandboxUnavailable: No kernel can be started now.
        """

    def isolation(self) -> dict[str, str]:
        """Isolation layer to "active" or to the reason why it is missing."""

    async def close(self) -> None:
        """Ends the provider and all its kernels."""
