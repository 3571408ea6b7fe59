"""Detection of a data file's kind by its content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from deepeyes_plugins.data.check.row import Kind
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.sources import NO_ROWS_IN

_HEAD_BYTES = 1 << 16
_SUFFIXES = (".parquet", ".json", ".jsonl")
_OBJECT_OF_OBJECTS = re.compile(rb'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{')
_CACHE_KEY = b'"tool_returned_web_title'
_PICKLE = b"\x80"


def kind_of_file(path: Path) -> Kind:
    """Detect the kind: RL (parquet), SFT (JSON array or lines) or image-search cache.

    Raises:
        DataError: It is none of them, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1"):
        return "rl"
    if head.startswith(_PICKLE):
        return "search-cache"
    if _OBJECT_OF_OBJECTS.match(text) and _CACHE_KEY in text:
        return "search-cache"
    if text.startswith((b"[", b"{")) or (not text and path.suffix in _SUFFIXES[1:]):
        return "sft"
    raise DataError(f"{path}: its content is neither parquet nor JSON; set the kind with --kind")


def files_in(paths: Iterable[Path], *, may_be_empty: bool = False) -> Iterator[Path]:
    """Yield files and, sorted by name, the data files of folders.

    Args:
        paths: Files and folders.
        may_be_empty: Whether a folder may contain no data file.

    Raises:
        DataError: A path does not exist, or a folder contains no data file.
    """
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise DataError(f"{path}: there is no such file or folder")
            yield path
            continue
        found = sorted(
            file
            for file in path.iterdir()
            if file.suffix in _SUFFIXES and file.name not in NO_ROWS_IN and file.is_file()
        )
        if not found and not may_be_empty:
            raise DataError(f"{path}: no {', '.join(_SUFFIXES)} in this folder")
        yield from found
