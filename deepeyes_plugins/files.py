"""Files that are whole or not there, lines that are whole or not there, and locks."""

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
"""How the names of unfinished files end; a process that was killed may leave one."""

_BLOCK = 1 << 16


@contextmanager
def whole_file(target: Path, *, shared: bool = False, sync: bool = False) -> Iterator[Path]:
    """Hand out a temporary name beside ``target`` that takes its place if all goes well.

    Whatever goes wrong, or is interrupted, leaves what was at ``target`` before; readers see the
    old file or the new one. The folder is made.

    Args:
        target: The file to write.
        shared: Several threads or processes may write it at the same time.
        sync: What is written is on the disk before it is renamed.

    Raises:
        OSError: It cannot be written, for instance for want of space.
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
    """Hold a lock between processes; it ends with the process that holds it.

    Args:
        lock: The lock's file; it and its folder are made.
        wait: Wait for the process that holds it.

    Raises:
        BlockingIOError: Another process holds it, and ``wait`` is false.
        OSError: The file cannot be made.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=-1 if wait else 0, thread_local=False, is_singleton=False)
    try:
        held.acquire()
    except Timeout as error:
        raise BlockingIOError(f"another process holds {lock}") from error
    try:
        yield
    finally:
        held.release()


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a file that threads and processes share, whole or not at all.

    A torn last line, of a writer that was killed, is removed first.

    Args:
        path: The file; it is created.
        line: Without a newline.

    Raises:
        OSError: The file cannot be written; it is as it was before.
    """
    with path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # Of the file itself: readers find no file beside it.
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
