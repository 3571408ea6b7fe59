"""Check files for supervised fine-tuning before any GPU is taken: every row, every image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from deepeyes_plugins.data.contracts import Conversation, Formatter, RowError
from deepeyes_plugins.data.files import conversation_rows, training_rows
from deepeyes_plugins.data.findings import Finding, Problem, Report
from deepeyes_plugins.data.formatter import check_opening, doubts, format_row, format_sharegpt
from deepeyes_plugins.data.image_checks import see_image
from deepeyes_plugins.data.media import MediaError, MediaRoot
from deepeyes_plugins.data.row_checks import check_rows


def check_sft_file(
    path: str | Path,
    media_root: str | Path | MediaRoot | None = None,
    *,
    formatter: Formatter = format_sharegpt,
    limit: int | None = None,
    is_loaded: bool = False,
) -> Report:
    """Check a file for supervised fine-tuning: a JSON array of rows, JSON lines or parquet.

    Args:
        path: The file.
        media_root: Folder or zip file that image paths are relative to; by default the folder of
            ``path``.
        formatter: What reads the rows.
        limit: Rows to check at most.
        is_loaded: Whether Hugging Face datasets has read the file already, so that whether it can
            is no question.
    """
    path = Path(path)
    if not isinstance(media_root, MediaRoot):
        try:
            media_root = MediaRoot.open(path.parent if media_root is None else media_root)
        except MediaError as error:
            return Report(path, problems=[Problem(path, None, "", str(error), "error")])
    rows = islice(conversation_rows(path) if is_loaded else training_rows(path), limit)
    return check_rows(path, rows, partial(sft_findings, formatter=formatter, media_root=media_root))


def sft_findings(
    row: Mapping[str, Any], *, formatter: Formatter, media_root: MediaRoot
) -> Iterator[Finding]:
    """Yield what is wrong with a row for supervised fine-tuning; its images are decoded."""
    try:
        conversation = format_row(formatter, row)
    except RowError as error:
        yield Finding(str(error))
        return
    yield from image_findings(conversation, media_root)
    for doubt in doubts(conversation):
        yield Finding(doubt, level="warning")


def repaired_findings(
    row: Mapping[str, Any], *, prefill: str = "", decode: bool = False
) -> Iterator[Finding]:
    """Yield what keeps a row from being used whose images have been located.

    Args:
        row: A row.
        prefill: What every assistant turn has to begin with.
        decode: Whether images are decoded.
    """
    try:
        conversation = format_sharegpt(row)
        check_opening(conversation, prefill)
    except RowError as error:
        yield Finding(str(error), "messages")
        return
    if decode:
        yield from image_findings(conversation, MediaRoot(None))


def image_findings(conversation: Conversation, media_root: MediaRoot) -> Iterator[Finding]:
    """Yield which images of a conversation cannot be found or decoded.

    Args:
        conversation: A formatted row.
        media_root: What paths are relative to.
    """
    for number, image in enumerate(conversation.images, 1):
        seen = see_image(number, image, media_root)
        if isinstance(seen, Finding):
            yield seen
