"""Checks of SFT rows and their images, before training starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from deepeyes_plugins.data.check.images import inspect_image
from deepeyes_plugins.data.check.rows import check_rows
from deepeyes_plugins.data.contracts import Conversation, Formatter, RowError
from deepeyes_plugins.data.dataset_info import media_roots
from deepeyes_plugins.data.files import conversation_rows, training_rows
from deepeyes_plugins.data.findings import Finding, Problem, Report
from deepeyes_plugins.data.formatter import check_opening, format_row, format_sharegpt, row_warnings
from deepeyes_plugins.data.media import MediaError, MediaRoot


def check_sft_file(
    path: str | Path,
    media_root: str | Path | MediaRoot | None = None,
    *,
    formatter: Formatter = format_sharegpt,
    limit: int | None = None,
    is_loaded: bool = False,
) -> Report:
    """Check an SFT file: a JSON array of rows, JSON lines or parquet.

    Args:
        path: The file.
        media_root: Folder or zip file that image paths are relative to; by default the folder of
            ``path``.
        formatter: Formatter of the rows.
        limit: Maximum number of rows.
        is_loaded: Whether Hugging Face datasets has already read the file, and its column types
            need no check.
    """
    path = Path(path)
    if not isinstance(media_root, MediaRoot):
        try:
            media_root = MediaRoot.open(
                path.parent if media_root is None else media_root,
                (path.parent, *media_roots(path)),
            )
        except MediaError as error:
            return Report(path, problems=[Problem(path, None, "", str(error), "error")])
    rows = islice(conversation_rows(path) if is_loaded else training_rows(path), limit)
    return check_rows(path, rows, partial(sft_findings, formatter=formatter, media_root=media_root))


def sft_findings(
    row: Mapping[str, Any], *, formatter: Formatter, media_root: MediaRoot
) -> Iterator[Finding]:
    """Yield the problems of an SFT row; its images are decoded."""
    try:
        conversation = format_row(formatter, row)
    except RowError as error:
        yield Finding(str(error))
        return
    yield from image_findings(conversation, media_root)
    for warning in row_warnings(conversation):
        yield Finding(warning, level="warning")


def repaired_findings(
    row: Mapping[str, Any], *, prefill: str = "", decode: bool = False
) -> Iterator[Finding]:
    """Yield the problems of a row whose images have been located.

    Args:
        row: The row.
        prefill: Required beginning of assistant turns.
        decode: Whether to decode images.
    """
    try:
        conversation = format_sharegpt(row)
        check_opening(conversation, prefill)
    except RowError as error:
        yield Finding(str(error), "messages")
        return
    if decode:
        yield from image_findings(conversation)


def image_findings(
    conversation: Conversation, media_root: MediaRoot | None = None
) -> Iterator[Finding]:
    """Yield images of a conversation that cannot be found or decoded.

    Args:
        conversation: A formatted row.
        media_root: Folder or zip file that paths are relative to; ``None`` if they are located.
    """
    for number, image in enumerate(conversation.images, 1):
        seen = inspect_image(number, image, media_root)
        if isinstance(seen, Finding):
            yield seen
