"""Anonymous memory files (memfd), shared by file descriptor and sealed."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

UNCHANGEABLE = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


@contextlib.contextmanager
def memfd(name: str, size: int = 0) -> Iterator[int]:
    """Create an anonymous memory file, and close it at the end.

    Args:
        name: Name in /proc, for debugging.
        size: Size in bytes; pages that are never written take no memory.
    """
    memory = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, size)
        yield memory
    finally:
        os.close(memory)


def seal(memory: int, seals: int) -> None:
    """Apply ``seals`` (``fcntl.F_SEAL_*``) permanently."""
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
