"""The kernel contract: what a session needs from the thing that runs its code.

The server knows kernels by these two protocols only. ``fork`` and ``jupyter`` ship; a third party's
are named in the settings as ``module:factory``, and ``deepeyes_plugins.testing.kernels`` tells whether
they keep the contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from deepeyes_plugins.sandbox.contracts import ExecutionResult, SandboxError


class ImageRejected(SandboxError):
    """The bytes are no image that sessions can have; the message says why."""


class ImagesMissing(SandboxError):
    """Images that were asked for by their hash are not held.

    Attributes:
        digests: The SHA-256 hashes, in hexadecimal.
    """

    def __init__(self, digests: Sequence[str]) -> None:
        """Name the images by their hashes."""
        super().__init__(f"{len(digests)} images must be uploaded first")
        self.digests = list(digests)


class SnapshotFailed(SandboxError):
    """A session's variables could not be saved now; the kernel may still be alive."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A session's variables and files, for another kernel of the same provider.

    Attributes:
        data: Opaque bytes, made of what untrusted code left: only a kernel may open them.
        names: The variables that it holds.
        lost: What it could not hold: variable or file name to the reason.
    """

    data: bytes
    names: list[str]
    lost: dict[str, str] = field(default_factory=dict)


class Kernel(Protocol):
    """Runs the cells of one session, with state that lives from cell to cell.

    The caller asks for one thing at a time; only ``interrupt`` and ``close`` may come in between.
    """

    @property
    def alive(self) -> bool:
        """Whether the next cell can still run; False for good once False."""

    @property
    def names(self) -> Sequence[str]:
        """The variables that the code had made when its last cell ended, if that is known."""

    async def execute(self, code: str, timeout: float) -> ExecutionResult:
        """Run one cell to its end.

        Args:
            code: Source text of the cell.
            timeout: Seconds after which the cell is interrupted.

        Returns:
            What happened, whatever the code did: this raises nothing on account of the code.
        """

    def interrupt(self) -> None:
        """Interrupt the running cell, which ends with KeyboardInterrupt, or the snapshot."""

    async def snapshot(self, max_bytes: int) -> Snapshot:
        """Save the variables; the session goes on as if nothing had happened.

        Args:
            max_bytes: Most that the snapshot may hold; what does not fit is named as lost.

        Raises:
            SnapshotFailed: It was interrupted, took too long, or the kernel has died.
        """

    async def restore(self, data: bytes) -> dict[str, str]:
        """Take over the variables of a snapshot; called at most once, before the first cell.

        Returns:
            What did not come back: variable or file name to the reason.

        Raises:
            SnapshotFailed: Nothing could be restored.
        """

    def memory(self) -> int:
        """Bytes that only this kernel holds; 0 where that is not known."""

    async def close(self) -> None:
        """End the kernel and removes all that it left, at once and at any time; idempotent."""


class KernelProvider(Protocol):
    """Makes kernels."""

    @property
    def restorable(self) -> bool:
        """Whether its kernels can be saved and restored; if not, sessions are never evicted."""

    async def start(self) -> None:
        """Make the provider ready.

        Raises:
            SandboxUnavailable: It cannot work here; the message says what to do.
        """

    async def add_image(self, digest: str, data: bytes) -> None:
        """Hold an image for kernels to come.

        Args:
            digest: SHA-256 of the data, in hexadecimal.
            data: An encoded image file.

        Raises:
            ImageRejected: The data is no usable image.
        """

    async def open(self, images: Sequence[str]) -> Kernel:
        """Start a kernel whose cells see the images as image_1, image_2, and so on.

        Args:
            images: SHA-256 hashes of images that were added.

        Raises:
            ImagesMissing: Some are not held (any more).
            SandboxUnavailable: No kernel can be started now.
        """

    def isolation(self) -> dict[str, str]:
        """Isolation layer to "active" or to the reason why it is missing."""

    def notes(self) -> dict[str, str]:
        """What users of this provider may want to know, such as the fonts that figures have."""

    async def close(self) -> None:
        """End the provider and all its kernels."""
