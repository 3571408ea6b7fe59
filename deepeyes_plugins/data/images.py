"""Images of rows: bytes, paths, data URIs or Pillow images."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.media import (
    confined,
    is_archived,
    is_inline,
    local_path,
    read_media,
)
from deepeyes_plugins.data.message_parts import image_source
from deepeyes_plugins.protocol.content import EncodedImage


def image_from(entry: Any, media_root: Path | None = None) -> EncodedImage:
    """Read an image of a row, with its original bytes where available.

    Args:
        entry: Bytes, a path, a data URI, a Pillow image, or a mapping with one of them under
            ``bytes``, ``image``, ``path``, ``url`` or ``image_url`` (the first that is set).
        media_root: Folder that paths are relative to and must not leave (see
            :func:`~deepeyes_plugins.data.media.confined`); without it any file is read, for
            instance one that :meth:`~deepeyes_plugins.data.media.MediaRoot.locate` has found.

    Raises:
        RowError: ``entry`` has no image, its path leaves ``media_root``, or its file cannot be
            read.
    """
    if isinstance(entry, Mapping):
        found = image_source(entry)
        if found is None:
            raise RowError(f"an image without bytes or path (it has {sorted(entry)})")
        entry = found
    if isinstance(entry, EncodedImage):
        return entry
    if isinstance(entry, bytes | bytearray | memoryview):
        return EncodedImage(bytes(entry))
    if isinstance(entry, str | Path):
        return EncodedImage(_read(entry, media_root))
    if isinstance(entry, Image.Image):
        return _original(entry) or EncodedImage.from_pil(entry)
    raise RowError(f"an image given as {type(entry).__name__}; expected bytes, a path or Pillow's")


def _read(path: str | Path, media_root: Path | None) -> bytes:
    name = str(path)
    if is_inline(name) or (media_root is None and is_archived(name)):
        return read_media(name)
    file = Path(local_path(name))
    if media_root is not None:
        file = Path(confined(str(file), str(media_root / file), (media_root,), "media_root"))
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte or half a character in it.
        reason = getattr(error, "strerror", None) or error
        raise RowError(f"image {file} cannot be read: {reason}") from error


def _original(image: Image.Image) -> EncodedImage | None:
    """Return the file that ``image`` was opened from, if available and of the same size."""
    if not isinstance(image, ImageFile.ImageFile):
        return None
    try:
        if isinstance(image.fp, io.BytesIO):
            source = EncodedImage(image.fp.getvalue())
        elif image.filename:
            source = EncodedImage(Path(os.fsdecode(image.filename)).read_bytes())
        else:
            return None
        return source if source.open().size == image.size else None
    except (OSError, ValueError):
        return None
