"""Repair of SFT rows to one schema.

The schema is ``messages`` (role and content, both strings), ``images`` (a list of strings, never
missing) and selected other columns as strings: Hugging Face datasets infers the type of a column
from the first rows and fails if later ones differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.findings import Finding
from deepeyes_plugins.data.formatter import ROLES
from deepeyes_plugins.data.media import short_name
from deepeyes_plugins.data.message_parts import image_source, plain_contents
from deepeyes_plugins.data.prepare.changes import Change, Outcome
from deepeyes_plugins.protocol.content import encodable

Locate = Callable[[str], str]


def repair_sft_row(
    row: Mapping[str, Any], *, locate: Locate, columns: Sequence[str] = (), prefill: str = ""
) -> Outcome:
    """Repair a row where the result is unambiguous.

    Args:
        row: The row.
        locate: Resolves the name of an image, or a data URI, to an absolute path or URL.
        columns: Other columns to keep.
        prefill: Required beginning of assistant turns, for instance ``<think>``. It is inserted
            if the turn has exactly one more closing than opening tag.

    Returns:
        The row, unchanged if it was valid. Faults are missing images; a formatter checks the
        conversation.
    """
    outcome = Outcome(None)
    note = outcome.changes.append
    images = _images(row, note)
    try:
        messages, images = _messages(row, images, note)
    except RowError as error:
        outcome.faults.append(Finding(str(error), "messages"))
        messages = row.get("messages")
    placed = []
    for number, name in enumerate(images, 1):
        try:
            if not isinstance(name, str):
                raise RowError(f"a {type(name).__name__}, not a path")
            placed.append(locate(name))
        except RowError as error:
            reason = f"image {number} ({short_name(name)}): {error}"
            outcome.faults.append(Finding(reason, "images"))
            placed.append(name)
    if placed != images:
        note(Change("images", images, placed, "where the images are"))
    if prefill:
        messages = _opened(messages, prefill, note)
    extra = {}
    for key, value in row.items():
        if key in columns:
            extra[key] = _text(value)
            if extra[key] != value:
                note(Change(key, value, extra[key], "a column of one type: text"))
        elif key not in ("messages", "conversations", "images", "system"):
            note(Change(key, value, None, "a column that the training does not read"))
    for key in columns:
        extra.setdefault(key, "")
    outcome.row = {"messages": messages, "images": placed, **extra}
    return outcome


def _messages(
    row: Mapping[str, Any], images: Sequence[Any], note: Callable[[Change], None]
) -> tuple[Any, list[Any]]:
    """Return the messages, and all images of the row including those within messages.

    Raises:
        RowError: A message has a part that is neither text nor an image.
    """
    key = "messages" if row.get("messages") is not None else "conversations"
    messages = row.get(key)
    if not isinstance(messages, list | tuple):
        return messages, list(images)
    contents = [
        message.get("content", message.get("value")) if isinstance(message, Mapping) else None
        for message in messages
    ]
    contents, found = plain_contents(contents, images)
    if len(found) > len(images):
        note(Change("images", images, found, "images that stand in messages"))
    repaired: list[Any] = []
    for message, content in zip(messages, contents, strict=True):
        if not isinstance(message, Mapping):
            repaired.append(message)
            continue
        role = message.get("role", message.get("from"))
        plain = {"role": ROLES.get(role, role) if isinstance(role, str) else role}
        plain["content"] = content
        repaired.append(plain)
        if plain != message:
            note(Change(key, message, plain, "a turn is a role and a text"))
    if key != "messages":
        note(Change("messages", None, f"{len(repaired)} turns", "'conversations' is 'messages'"))
    system = row.get("system")
    if isinstance(system, str) and system:
        first = repaired[0].get("role") if repaired and isinstance(repaired[0], dict) else None
        if first != "system":
            repaired.insert(0, {"role": "system", "content": system})
            note(Change("system", system, None, "the system prompt is the first turn"))
    return repaired, found


def _images(row: Mapping[str, Any], note: Callable[[Change], None]) -> list[Any]:
    images = row.get("images")
    if images is None:
        note(Change("images", None, [], "no images are an empty list"))
        return []
    if not isinstance(images, list | tuple):
        images = [images]
        note(Change("images", images[0], images, "one image is a list of one"))
    names = []
    for image in images:
        if isinstance(image, Mapping) and isinstance(source := image_source(image), str):
            names.append(source)
            note(Change("images", image, source, "an image is named by its path"))
        elif image is None or image == "":
            note(Change("images", image, None, "an entry without an image"))
        else:
            names.append(image)
    return names


def _opened(messages: Any, prefill: str, note: Callable[[Change], None]) -> Any:
    if not isinstance(messages, list):
        return messages
    closing = prefill.replace("<", "</", 1)
    repaired = []
    for message in messages:
        text = message.get("content") if isinstance(message, dict) else None
        if (
            isinstance(text, str)
            and message["role"] == "assistant"
            and not text.lstrip().startswith(prefill)
            and text.count(closing) == text.count(prefill) + 1
        ):
            message = {**message, "content": prefill + text}
            note(Change("messages", text, message["content"], f"a turn begins with {prefill}"))
        repaired.append(message)
    return repaired


def _text(value: Any) -> str:
    if value is None:
        return ""
    return encodable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
