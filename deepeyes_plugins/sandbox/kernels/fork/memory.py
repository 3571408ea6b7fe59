"""Memory that processes share by its file descriptor."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

UNCHANGEABLE = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


@contextlib.contextmanager
def memfd(name: str, size: int = 0) -> Iterator[int]:
    """Make memory, and closes its file descriptor in the end.

    Args:
        name: For people who look at /proc.
        size: Bytes; those that nobody writes to take no room.
    """
    memory = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, size)
        yield memory
    finally:
        os.close(memory)


def seal(memory: int, seals: int) -> None:
    """Take from everybody, and for good, what ``seals`` (``fcntl.F_SEAL_*``) name."""
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
