"""Messages whose content is a list of parts, as chat servers and processors take it.

An image of such a message stands in its part, or where the part only says that there is one, in
the column ``images``. All readers of rows go through :func:`plain_contents`, which makes of it text
with an ``<image>`` where an image stands, and one list of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.protocol.dialect import IMAGE_PLACEHOLDER
from deepeyes_plugins.protocol.missing import is_missing

SPELLED_PLACEHOLDER = IMAGE_PLACEHOLDER.replace("<", "< ")
"""What text in a part that spells a placeholder becomes, so that it stays text."""

_TEXTS = ("text", "input_text", None)
_IMAGES = ("image", "image_url", "input_image")
_KEYS = ("bytes", "image", "path", "url", "image_url")
"""Where an image is in a part or an entry of ``images``; the first that is set counts."""


def plain_contents(contents: Sequence[Any], images: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Write the contents of a row's messages as text, and put its images in their order.

    Args:
        contents: Of the messages: texts, or lists of parts: texts, ``{"type": "text", "text"}``,
            ``{"type": "image"}`` with the image under ``bytes``, ``image``, ``path`` or ``url``,
            and ``{"type": "image_url", "image_url": {"url"}}``. Anything else is left to whoever
            reads the result.
        images: The column ``images``: of placeholders in texts and of parts without an image.

    Returns:
        The contents, and one image for each ``<image>`` in them, unless ``images`` has more or
        fewer.

    Raises:
        RowError: A part is neither a text nor an image.
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
    """Return the path, address, bytes or picture in a part or in an entry of ``images``.

    Returns:
        ``None`` where there is none.
    """
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
                f"part {number} of message {message} is neither a text nor an image: {part!r:.80}"
            )


def is_list(content: Any) -> bool:
    """Return whether it is a list, a tuple or an array, which is what frameworks make of a list."""
    return not isinstance(content, str | bytes | Mapping) and hasattr(content, "__iter__")
