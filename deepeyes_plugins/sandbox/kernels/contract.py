"""Kernel contract: the protocols between the sandbox server and whatever runs the code.

``fork`` and ``jupyter`` are built in; the settings name custom kernels as ``module:factory``, and
``deepeyes_plugins.testing.kernels`` checks whether they fulfil the contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from deepeyes_plugins.sandbox.contracts import ExecutionResult, SandboxError


class ImageRejected(SandboxError):
    """The bytes are not a valid image; the message says why."""


class ImagesMissing(SandboxError):
    """Requested images are not available.

    Attributes:
        digests: Their SHA-256 hashes, in hexadecimal.
    """

    def __init__(self, digests: Sequence[str]) -> None:
        super().__init__(f"{len(digests)} images must be uploaded first")
        self.digests = list(digests)


class SnapshotFailed(SandboxError):
    """A session could not be saved or restored; its kernel may still be alive."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Snapshot of a session's variables and files, for another kernel of the same provider.

    Attributes:
        data: Opaque, untrusted bytes: only a kernel may deserialize them.
        names: The variables in it.
        lost: Variables and files that could not be saved, each with the reason.
    """

    data: bytes
    names: list[str]
    lost: dict[str, str] = field(default_factory=dict)


class Kernel(Protocol):
    """Runs the cells of one session, whose state persists from cell to cell.

    Calls are serial, except that ``interrupt`` and ``close`` may be called at any time.
    """

    @property
    def alive(self) -> bool:
        """Whether another cell can run; once False, it stays False."""

    @property
    def names(self) -> Sequence[str]:
        """Variables defined by the code, as of the end of the last cell, if known."""

    async def execute(self, code: str, timeout: float) -> ExecutionResult:
        """Run one cell to its end.

        Args:
            code: Source text of the cell.
            timeout: Seconds after which the cell is interrupted.

        Returns:
            The result. Errors of the code are part of it and never raised.
        """

    def interrupt(self) -> None:
        """Interrupt the running cell, by KeyboardInterrupt, or the snapshot in progress."""

    async def snapshot(self, max_bytes: int) -> Snapshot:
        """Save the variables and files; the session is not affected.

        Args:
            max_bytes: Maximum size of the snapshot; what does not fit is reported as lost.

        Raises:
            SnapshotFailed: It was interrupted or timed out, or the kernel has died.
        """

    async def restore(self, data: bytes) -> dict[str, str]:
        """Restore a snapshot; called at most once, before the first cell.

        Returns:
            Variables and files that could not be restored, each with the reason.

        Raises:
            SnapshotFailed: Nothing could be restored.
        """

    def memory(self) -> int:
        """Return the unshared memory of this kernel in bytes; 0 if unknown."""

    async def close(self) -> None:
        """Kill the kernel and remove its files; possible at any time, and idempotent."""


class KernelProvider(Protocol):
    """Makes kernels."""

    @property
    def restorable(self) -> bool:
        """Whether its kernels support snapshots; if not, sessions are never evicted."""

    async def start(self) -> None:
        """Start the provider.

        Raises:
            SandboxUnavailable: It cannot work here; the message says what to do.
        """

    async def add_image(self, digest: str, data: bytes) -> None:
        """Add an image for future kernels.

        Args:
            digest: SHA-256 of the data, in hexadecimal.
            data: An encoded image file.

        Raises:
            ImageRejected: The data is not a valid image.
        """

    async def open(self, images: Sequence[str]) -> Kernel:
        """Start a kernel whose cells see the images as image_1, image_2, and so on.

        Args:
            images: SHA-256 hashes of images that were added.

        Raises:
            ImagesMissing: Some were not added, or were dropped since.
            SandboxUnavailable: No kernel can be started now.
        """

    def isolation(self) -> dict[str, str]:
        """Return the state of each isolation layer: "active", or why it is missing."""

    def notes(self) -> dict[str, str]:
        """Return other facts about this provider, such as the fallback font of figures."""

    async def close(self) -> None:
        """Stop the provider and all its kernels."""
