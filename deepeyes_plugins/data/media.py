"""Where the image files of a data set are: in a folder, or in a zip file that nobody unpacks.

A file in a zip is named by a chained address, ``zip://images/1.png::/data/images.zip``, as fsspec
writes it, so that rows keep holding plain strings on their way through a trainer. Each process
keeps one open handle per zip file; a member is read by random access.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self
from zipfile import ZipFile, ZipInfo

from deepeyes_plugins.data.contracts import RowError

ARCHIVE_NAME = "images.zip"
"""Looked for in a media folder; the published SFT data come with one."""

MAXIMUM_MEMBER_BYTES = 256 << 20
"""Unpacked size of a zip member above which it is refused, as a decompression bomb (ours)."""

_SCHEME = "zip://"
_SEPARATOR = "::"
_ENCRYPTED = 0x1


class MediaError(ValueError):
    """A media folder or zip file cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class MediaRoot:
    """What relative image names are relative to.

    Attributes:
        folder: A folder; ``None`` if there is only a zip file.
        archive: A zip file; ``None`` if there is only a folder.
    """

    folder: Path | None
    archive: Path | None = None

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Find out what ``path`` is: a zip file, or a folder with or without ``images.zip``.

        Raises:
            MediaError: It is neither, or the zip file cannot be read.
        """
        path = Path(path).absolute()
        if path.is_dir():
            inside = path / ARCHIVE_NAME
            root = cls(path, inside if inside.is_file() else None)
        elif path.is_file():
            root = cls(None, path)
        else:
            raise MediaError(f"{path}, what images are relative to, is neither a folder nor a zip")
        if root.archive is not None:
            _open(root.archive)
        return root

    def locate(self, name: str) -> str:
        """Return the path or the address of an image.

        The folder comes first, then the zip file, then ``name`` as it is. In a zip file called
        ``images.zip`` the folder ``images/`` may be there or not, whatever the row says: people
        pack with and without it.

        Raises:
            RowError: There is no such file.
        """
        # Not by pathlib, which takes several times longer: a data set names many thousands.
        if self.folder is not None and os.path.isfile(path := os.path.join(self.folder, name)):
            return path
        if self.archive is not None:
            members = _open(self.archive).NameToInfo
            for candidate in _member_names(name, self.archive.stem):
                if candidate in members:
                    return f"{_SCHEME}{candidate}{_SEPARATOR}{self.archive}"
        if Path(name).is_file():
            return name
        raise RowError(f"there is no such file in {self}")

    def __str__(self) -> str:
        return " or ".join(str(place) for place in (self.folder, self.archive) if place)


def is_archived(name: str) -> bool:
    """Whether ``name`` is the address of a file in a zip file."""
    return name.startswith(_SCHEME) and _SEPARATOR in name


def read_media(name: str) -> bytes:
    """Read a file by what :meth:`MediaRoot.locate` returned.

    Raises:
        RowError: It cannot be read.
    """
    if not is_archived(name):
        try:
            return Path(name).read_bytes()
        except OSError as error:
            raise RowError(f"the file cannot be read: {error}") from error
    member, _, archive = name.removeprefix(_SCHEME).rpartition(_SEPARATOR)
    try:
        opened = _open(Path(archive))
        info = opened.NameToInfo[member]
        _refuse_unreadable(info)
        return opened.read(info)
    # zlib.error, BadZipFile, NotImplementedError for a method, EOFError where it is cut short, ...
    except Exception as error:
        raise RowError(f"{member} of {archive} cannot be read: {error}") from error


def _refuse_unreadable(info: ZipInfo) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise MediaError("it is encrypted")
    # The size that the zip file states is also the most that is unpacked.
    if info.file_size > MAXIMUM_MEMBER_BYTES:
        raise MediaError(
            f"it would unpack to {info.file_size} bytes; {MAXIMUM_MEMBER_BYTES} are accepted"
        )


def _member_names(name: str, stem: str) -> Iterator[str]:
    plain = posixpath.normpath(name.replace("\\", "/"))
    yield plain
    yield plain.removeprefix(f"{stem}/")
    yield f"{stem}/{plain}"


def _open(archive: Path) -> ZipFile:
    """Open a zip file, once per process: a forked process must not share its parent's position.

    Raises:
        MediaError: It cannot be read.
    """
    try:
        stat = archive.stat()
        return _opened(archive, (stat.st_mtime_ns, stat.st_size), os.getpid())
    except Exception as error:
        raise MediaError(
            f"{archive} cannot be read as a zip file, perhaps cut short or still being copied: "
            f"{error}"
        ) from error


@lru_cache(maxsize=8)
def _opened(archive: Path, version: tuple[int, int], process: int) -> ZipFile:
    return ZipFile(archive)
