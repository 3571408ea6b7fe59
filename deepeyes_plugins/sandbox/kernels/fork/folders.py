"""Scratch folders of untrusted code: disk usage and safe removal."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

logger = logging.getLogger(__name__)


def remove(folder: Path) -> None:
    """Remove a folder and its contents, whatever their depth and permissions.

    Folders two levels down are moved up to the first, which avoids long paths and recursion.
    """
    try:
        while inner := _clear(str(folder)):
            for path in inner:
                for deeper in _clear(path):
                    os.rename(deeper, folder / uuid4().hex)
                os.rmdir(path)
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("the files of a session could not be removed: %s", error)


def _clear(folder: str) -> list[str]:
    """Remove the files of a folder; return its subfolders, made accessible."""
    os.chmod(folder, 0o700)
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                # Moving a folder changes its ".." entry, which needs write permission.
                os.chmod(entry.path, 0o700)
                folders.append(entry.path)
            else:
                os.unlink(entry.path)
    return folders


def exceeds(folder: Path, pid: int, size: int, files: int) -> bool:
    """Return whether a process exceeds the quota of its folder.

    Args:
        folder: The only folder that the process may write.
        pid: The process; files that it has removed but not closed count, too.
        size: Quota in bytes.
        files: Quota of files and folders.
    """
    try:
        device = os.lstat(folder).st_dev
    except OSError:
        return False
    for status in _unlinked(pid, device):
        size -= status.st_blocks * 512
    for status in _entries(folder):
        size -= status.st_blocks * 512
        files -= 1
        if size < 0 or files < 0:
            return True
    return size < 0


def _unlinked(pid: int, device: int) -> Iterator[os.stat_result]:
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                status = os.stat(f"/proc/{pid}/fd/{descriptor}")
                removed = stat.S_ISREG(status.st_mode) and not status.st_nlink
                if removed and status.st_dev == device:
                    yield status


def _entries(folder: Path) -> Iterator[os.stat_result]:
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(parent, name))
