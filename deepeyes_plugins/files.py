"""Atomic writes of files and lines, and locks between processes."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

PARTIAL = ".partial"
"""Suffix of unfinished files, which a killed process may leave."""

_BLOCK = 1 << 16


@contextmanager
def whole_file(target: Path, *, shared: bool = False, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``target``, which replaces it if the block succeeds.

    After an error or interruption ``target`` is unchanged; readers see the old file or the new one.
    The folder is created.

    Args:
        target: The file to write.
        shared: Several threads or processes may write the file at the same time.
        sync: Flush the file to disk before it is renamed.

    Raises:
        OSError: The file cannot be written, for instance because the disk is full.
    """
    writer = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    partial = target.with_name(f".{target.name}{writer}{PARTIAL}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        if sync:
            _sync(partial)
        partial.replace(target)
        if sync:
            _sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def exclusive(lock: Path, *, wait: bool) -> Iterator[None]:
    """Lock out other processes; the lock is released at the latest when the process ends.

    Args:
        lock: The lock file, which is created together with its folder.
        wait: Wait for another process to release the lock.

    Raises:
        BlockingIOError: Another process has the lock, and ``wait`` is false.
        OSError: The file cannot be created.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    file_lock = FileLock(lock, timeout=-1 if wait else 0, thread_local=False, is_singleton=False)
    try:
        file_lock.acquire()
    except Timeout as error:
        raise BlockingIOError(f"another process holds {lock}") from error
    try:
        yield
    finally:
        file_lock.release()


def append_line(path: Path, line: bytes) -> None:
    """Append a line atomically to a file that threads and processes share.

    A truncated last line, left by a killed writer, is removed first.

    Args:
        path: The file; it is created if missing.
        line: The line without a newline.

    Raises:
        OSError: The file cannot be written; it is unchanged.
    """
    with path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # On the file itself, so that no lock file is left.
        end = _end_of_last_line(file)
        rest = memoryview(line + b"\n")
        try:
            file.truncate(end)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(end)
            raise


def _end_of_last_line(file: BinaryIO) -> int:
    """Return the position after the last newline."""
    position = file.seek(0, os.SEEK_END)
    while position:
        start = max(0, position - _BLOCK)
        file.seek(start)
        block = file.read(position - start)
        if (newline := block.rfind(b"\n")) >= 0:
            return start + newline + 1
        position = start
    return 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
