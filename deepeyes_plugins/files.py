"""Atomic writes, files for the owner only, locks between processes, and JSON of strangers."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

PARTIAL = ".partial"
"""Suffix of unfinished files, which a killed process may leave."""

_BLOCK = 1 << 16


def read_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        json.JSONDecodeError: The text is not JSON, or nested too deeply to be read.
        UnicodeDecodeError: The bytes are not UTF-8.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", "", 0) from error


def owner_only(path: Path) -> None:
    """Make a file for its owner only (0600), also if it exists already.

    Raises:
        OSError: The file cannot be created.
    """
    path.touch(mode=0o600)
    _restrict(path)


def owner_only_folder(path: Path, *, contents: bool = False) -> None:
    """Make a folder for its owner only (0700), also if it exists already.

    A folder that several users share (with the sticky bit, as ``/tmp``), and one that the current
    folder is in, keep their mode.

    Args:
        path: The folder.
        contents: Whether to restrict what is in the folder, too.

    Raises:
        OSError: The folder cannot be created.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not Path.cwd().is_relative_to(path.resolve()):
        _restrict(path)
    for each in path.rglob("*") if contents else ():
        _restrict(each)


def _restrict(path: Path) -> None:
    state = path.stat()
    if state.st_uid == os.geteuid() and state.st_mode & 0o077 and not state.st_mode & stat.S_ISVTX:
        path.chmod(state.st_mode & 0o700)


@contextmanager
def whole_file(
    target: Path, *, shared: bool = False, sync: bool = False, private: bool = False
) -> Iterator[Path]:
    """Yield a temporary path beside ``target``, which replaces it if the block succeeds.

    After an error or interruption ``target`` is unchanged; readers see the old file or the new one.
    The folder is created.

    Args:
        target: The file to write.
        shared: Several threads or processes may write the file at the same time.
        sync: Flush the file to disk before it is renamed.
        private: Nobody but the owner may read the file.

    Raises:
        OSError: The file cannot be written, for instance because the disk is full.
    """
    writer = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    partial = target.with_name(f".{target.name}{writer}{PARTIAL}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if private:
            owner_only(partial)
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

    Nobody but the owner may read the file.

    Args:
        path: The file; it is created if missing.
        line: The line without a newline.

    Raises:
        OSError: The file cannot be written; it is unchanged.
    """
    owner_only(path)
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
