"""Messages whose content is a list of parts, as in chat APIs.

The image is in its part or, if the part is only a marker, in the column ``images``. All readers of
rows use :func:`plain_contents`, which converts both forms to text with ``<image>`` placeholders and
one list of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.protocol.dialect import IMAGE_PLACEHOLDER
from deepeyes_plugins.protocol.missing import is_missing

SPELLED_PLACEHOLDER = IMAGE_PLACEHOLDER.replace("<", "< ")
"""Replacement for a placeholder that occurs in the text of a part, so that it stays text."""

_TEXTS = ("text", "input_text", None)
_IMAGES = ("image", "image_url", "input_image")
_KEYS = ("bytes", "image", "path", "url", "image_url")
"""Keys of an image in a part or an entry of ``images``; the first that is set is used."""


def plain_contents(contents: Sequence[Any], images: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Convert the contents of messages to text, and put the images in order.

    Args:
        contents: Contents of the messages: strings, or lists of parts: strings,
            ``{"type": "text", "text"}``, ``{"type": "image"}`` with the image under ``bytes``,
            ``image``, ``path`` or ``url``, and ``{"type": "image_url", "image_url": {"url"}}``.
            Anything else is returned unchanged.
        images: The column ``images``: images of placeholders and of parts without an image.

    Returns:
        The contents, and one image for each ``<image>`` in them unless ``images`` has more or
        fewer.

    Raises:
        RowError: A part is neither text nor an image.
    """
    if not any(map(is_list, contents)):
        return list(contents), list(images)
    column = iter(images)
    found: list[Any] = []
    plain: list[Any] = []
    for number, content in enumerate(contents, 1):
        if is_list(content):
            content = "".join(_written(content, number, column, found))
        elif isinstance(content, str):
            found += islice(column, content.count(IMAGE_PLACEHOLDER))
        plain.append(content)
    return plain, [*found, *column]


def image_source(entry: Any) -> Any:
    """Return path, URL, bytes or Pillow image of a part or entry of ``images``, or ``None``."""
    while isinstance(entry, Mapping):
        entry = next((entry[key] for key in _KEYS if not _is_empty(entry.get(key))), None)
    return None if _is_empty(entry) else entry


def _is_empty(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, bytes) and not value)


def _written(parts: Any, message: int, column: Iterator[Any], found: list[Any]) -> Iterator[str]:
    for number, part in enumerate(parts, 1):
        if isinstance(part, str):
            yield part.replace(IMAGE_PLACEHOLDER, SPELLED_PLACEHOLDER)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else ""
        if kind in _IMAGES:
            source = image_source(part)
            found += islice(column, 1) if source is None else [source]
            yield IMAGE_PLACEHOLDER
        elif kind in _TEXTS and isinstance(part.get("text"), str):
            yield part["text"].replace(IMAGE_PLACEHOLDER, SPELLED_PLACEHOLDER)
        else:
            raise RowError(
                f"part {number} of message {message} is neither text nor an image: {part!r:.80}"
            )


def is_list(content: Any) -> bool:
    """Return whether ``content`` is a list, tuple or array."""
    return not isinstance(content, str | bytes | Mapping) and hasattr(content, "__iter__")
