"""Image files of a data set, in a folder or in a zip file, without unpacking it.

A zip member has a chained URL as in fsspec, ``zip://images/1.png::/data/images.zip``, so that rows
hold plain strings throughout a trainer. Each process keeps one open handle per zip file and reads
members by random access.
"""

from __future__ import annotations

import base64
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote_to_bytes
from zipfile import ZipFile, ZipInfo

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.files import unreadable
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.message_parts import image_source

ARCHIVE_NAME = "images.zip"
"""Zip file in a media folder; the published SFT data include one."""

MAXIMUM_MEMBER_BYTES = 256 << 20
"""Maximum unpacked size of a zip member, against decompression bombs."""

MEDIA_ROOTS = "DEEPEYES_MEDIA_ROOTS"
"""Environment variable with further folders in which rows may name images, separated by ``:``."""

_SCHEME = "zip://"
_FILE = "file://"
_INLINE = "data:"
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SEPARATOR = "::"
_ENCRYPTED = 0x1
_OPEN_ARCHIVES = 256
"""Open zip files per process; with fewer than a data set has, every access would reopen one."""


class MediaError(DataError):
    """A media folder or zip file cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class MediaRoot:
    """The folder or zip file that image names are relative to.

    Attributes:
        folder: A folder; ``None`` if there is only a zip file.
        archive: A zip file; ``None`` if there is only a folder.
        reads_archives: Whether names may be URLs of zip members or data URIs.
        also: Further folders that absolute paths and zip files may be in.
        setting: Setting of the folder, for messages.
    """

    folder: Path | None
    archive: Path | None = None
    reads_archives: bool = True
    also: tuple[Path, ...] = field(default_factory=lambda: named_roots())
    setting: str = "media_root"

    @classmethod
    def open(cls, path: str | Path, also: Iterable[Path] = (), setting: str = "media_root") -> Self:
        """Open a zip file, or a folder with or without ``images.zip``.

        Raises:
            MediaError: It is neither, or the zip file cannot be read.
        """
        path = Path(path).absolute()
        roots = (*(folder.absolute() for folder in also), *named_roots())
        if path.is_dir():
            inside = path / ARCHIVE_NAME
            root = cls(path, inside if inside.is_file() else None, True, roots, setting)
        elif path.is_file():
            root = cls(None, path, True, roots, setting)
        else:
            raise MediaError(f"{path}, the media root, is neither a folder nor a zip file")
        if root.archive is not None:
            _open(root.archive)
        return root

    def locate(self, name: str) -> str:
        """Return the path or URL of an image.

        A URL is returned unchanged. Other names are searched in the folder, then in the zip file,
        then as an absolute path. In ``images.zip`` the folder ``images/`` is optional, whether or
        not the row names it.

        Raises:
            RowError: There is no such file, or it is outside of the folders that rows may name.
        """
        if is_archived(name):
            return self._address(name)
        if is_inline(name):
            if not self.reads_archives:
                raise RowError(
                    "it is a data URI, which only the templates deepeyes_qwen2_vl and "
                    "deepeyes_qwen3_vl read; `deepeyes data prepare sft` writes it to a file"
                )
            return name
        name = local_path(name)
        # Several times as fast as pathlib, for many thousands of names.
        if self.folder is not None and os.path.isfile(path := os.path.join(self.folder, name)):
            return self._confined(name, path)
        if packed := self.find_packed(name):
            return packed
        if os.path.isabs(name) and os.path.isfile(name):
            return self._confined(name, name)
        raise RowError(f"there is no such file in {self}")

    def located(self, image: Any) -> Any:
        """Return an image of a row with its path, if it has one, as :meth:`locate` returns it.

        Raises:
            RowError: As for :meth:`locate`.
        """
        source = image_source(image)
        return self.locate(str(source)) if isinstance(source, str | Path) else source

    def _confined(self, name: str, path: str) -> str:
        roots = self.also if self.folder is None else (self.folder, *self.also)
        return confined(name, path, roots, self.setting)

    def find_packed(self, name: str) -> str | None:
        """Return the URL of an image in the zip file, or ``None``."""
        if self.archive is not None:
            members = _open(self.archive).NameToInfo
            for candidate in _member_names(name, self.archive.stem):
                if candidate in members:
                    return f"{_SCHEME}{candidate}{_SEPARATOR}{self.archive}"
        return None

    def _address(self, name: str) -> str:
        member, archive = _split(name)
        if not self.reads_archives:
            raise RowError(
                f"it is in the zip file {archive}, which only the templates deepeyes_qwen2_vl and "
                "deepeyes_qwen3_vl read"
            )
        if archive != self.archive:
            self._confined(str(archive), str(archive))
        try:
            known = member in _open(archive).NameToInfo
        except MediaError as error:
            raise RowError(str(error)) from error
        if not known:
            raise RowError(f"there is no such file in {archive}")
        return name

    def __str__(self) -> str:
        return " or ".join(str(place) for place in (self.folder, self.archive) if place)


@dataclass(frozen=True, slots=True)
class MediaPlaces:
    """Folders and zip files in which images of downloaded data are searched.

    Attributes:
        places: Folders and zip files in search order.
    """

    places: tuple[MediaRoot, ...]

    @classmethod
    def open(cls, paths: Iterable[Path]) -> Self:
        """Open zip files, and folders with the zip files in them.

        Raises:
            MediaError: One of them is neither, or a zip file cannot be read.
        """
        places: list[MediaRoot] = []
        for path in (*paths, *named_roots()):
            path = path.absolute()
            if path.is_dir():
                places.append(MediaRoot(path))
                places += (MediaRoot.open(archive) for archive in sorted(path.glob("*.zip")))
            else:
                places.append(MediaRoot.open(path))
        return cls(tuple(dict.fromkeys(places)))

    @property
    def roots(self) -> list[Path]:
        """The folders and zip files."""
        return [root for place in self.places if (root := place.folder or place.archive)]

    def locate(self, name: str) -> str:
        """Return the absolute path or the URL of an image.

        An absolute path of another machine matches by its longest suffix that exists in a place.

        Raises:
            RowError: There is no such file, or it is outside of the places.
        """
        if is_archived(name):
            archive = _split(name)[1].absolute()
            for place in self.places:
                if place.archive == archive:
                    return place.locate(name)
            raise RowError(f"{archive} is not among the media paths, {self}; add it with --media")
        if is_inline(name):
            return name
        plain = local_path(name).replace("\\", "/")
        refuse_parents(plain, self.roots)
        candidates = [plain]
        if plain.startswith("/"):
            parts = [part for part in plain.split("/") if part]
            candidates += ("/".join(parts[at:]) for at in range(len(parts)))
        for candidate in candidates:
            for place in self.places:
                if place.folder is None:
                    if packed := place.find_packed(candidate):
                        return packed
                elif os.path.isfile(path := os.path.join(place.folder, candidate)):
                    try:
                        return confined(candidate, path, self.roots, "--media")
                    except RowError:
                        if not plain.startswith("/"):
                            raise
        raise RowError(f"there is no such file in {self}")

    def __str__(self) -> str:
        return " or ".join(map(str, self.places))


def named_roots() -> tuple[Path, ...]:
    """Return the folders that the environment variable ``DEEPEYES_MEDIA_ROOTS`` names."""
    named = os.environ.get(MEDIA_ROOTS, "").split(os.pathsep)
    return tuple(Path(each).absolute() for each in named if each)


def confined(name: str, path: str, roots: Iterable[str | Path], setting: str) -> str:
    """Return the path of a file that a row names, if rows may name it.

    Names in rows are not trusted: neither ``..``, an absolute path nor a symbolic link may lead
    out of the roots.

    Args:
        name: The name in the row.
        path: Its path.
        roots: Folders and zip files that rows may name, besides those of
            ``DEEPEYES_MEDIA_ROOTS``.
        setting: The setting that names a root, for the message.

    Raises:
        RowError: The file is outside of all roots.
    """
    roots = (*roots, *named_roots())
    refuse_parents(name, roots)
    try:
        real = os.path.realpath(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte or half a character in it.
        raise RowError(f"{name:.300} cannot be read: {error}") from error
    for root in map(os.path.realpath, roots):
        if real == root or real.startswith(os.path.join(root, "")):
            return path
    where = f"{path:.300} is outside"
    if real != os.path.abspath(path):
        where = f"a symbolic link leads to {real:.300}, outside of"
    raise RowError(f"{where} {_listed(roots)}; name its folder in {setting} or {MEDIA_ROOTS}")


def refuse_parents(name: str, roots: Iterable[str | Path]) -> None:
    """Refuse a name with ``..`` in it.

    Raises:
        RowError: It has one.
    """
    if ".." in name.replace("\\", "/").split("/"):
        reason = "a path with .. in it is not followed"
        raise RowError(f"{name:.300} is outside {_listed(roots)}: {reason}")


def _listed(roots: Iterable[str | Path]) -> str:
    return " or ".join(map(str, roots)) or "all media folders"


def is_archived(name: str) -> bool:
    """Return whether ``name`` is the URL of a zip member."""
    return name.startswith(_SCHEME) and _SEPARATOR in name


def is_inline(name: str) -> bool:
    """Return whether ``name`` is a data URI."""
    return name.startswith(_INLINE)


def local_path(name: str) -> str:
    """Return the path in ``name``, which may be a ``file://`` URL.

    Raises:
        RowError: It is a remote URL.
    """
    path = name.removeprefix(_FILE)
    if _REMOTE.match(path) and not is_archived(path):
        raise RowError(
            f"{path:.200} is a remote URL, and images are not downloaded: save the image to a "
            "file and use its path"
        )
    return path


def short_name(name: object) -> str:
    """Return an image's name for messages; a data URI without its data."""
    text = str(name)
    return f"{text.partition(',')[0][:80]},…" if is_inline(text) else f"{text:.300}"


def _inline_bytes(uri: str) -> bytes:
    header, comma, data = uri.partition(",")
    try:
        if not comma:
            raise ValueError("it has no comma")
        if header.endswith(";base64"):
            return base64.b64decode("".join(data.split()), validate=True)
        return unquote_to_bytes(data)
    except ValueError as error:
        raise RowError(f"the data URI cannot be read: {error}") from error


def _split(address: str) -> tuple[str, Path]:
    member, _, archive = address.removeprefix(_SCHEME).rpartition(_SEPARATOR)
    return member, Path(archive)


def read_media(name: str) -> bytes:
    """Read an image by the result of :meth:`MediaRoot.locate`.

    Raises:
        RowError: It cannot be read.
    """
    if is_inline(name):
        return _inline_bytes(name)
    if not is_archived(name):
        try:
            return Path(name).read_bytes()
        except OSError as error:
            raise RowError(f"the file cannot be read: {error}") from error
    member, archive = _split(name)
    try:
        opened = _open(archive)
        info = opened.NameToInfo[member]
        _refuse_unreadable(info)
        return opened.read(info)
    # zlib.error, BadZipFile, NotImplementedError for a method, EOFError if truncated, …
    except Exception as error:
        raise RowError(f"{member} of {archive} cannot be read: {error}") from error


def _refuse_unreadable(info: ZipInfo) -> None:
    if info.flag_bits & _ENCRYPTED:
        raise MediaError("it is encrypted")
    # The stated size also limits what is unpacked.
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
    """Open a zip file once per process: forked processes must not share a file position.

    Raises:
        MediaError: It cannot be read.
    """
    try:
        stat = archive.stat()
        return _opened(archive, (stat.st_mtime_ns, stat.st_size), os.getpid())
    except Exception as error:
        raise MediaError(f"{archive} {unreadable(error, form='a zip file')}") from error


@lru_cache(maxsize=_OPEN_ARCHIVES)
def _opened(archive: Path, version: tuple[int, int], process: int) -> ZipFile:
    return ZipFile(archive)
