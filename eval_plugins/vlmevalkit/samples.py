"""Conversion of VLMEvalKit's samples to tasks."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage, Message, Part, Role
from deepeyes_plugins.rollout import Task

Item = Mapping[str, Any]
"""A part of a sample, ``{"type": "text" | "image", "value": …}``, with an optional ``role`` and the
keys that :func:`annotate` adds."""

_INDEX = "deepeyes_index"
_ORIGINAL = "deepeyes_original"


def annotate(prompt: Any, line: Mapping[str, Any]) -> Any:
    """Add the sample's index and original image file to a dataset's prompt.

    Args:
        prompt: Result of the dataset's ``build_prompt`` for the row.
        line: A row of the dataset.

    Returns:
        The prompt with the sample's index in every part and the dataset's base64 image in image
        parts. A prompt that is not a list of parts is returned unchanged.
    """
    if not isinstance(prompt, list) or not all(isinstance(item, dict) for item in prompt):
        return prompt
    stored = line.get("image")
    originals = [stored] if isinstance(stored, str) else stored
    places = [item for item in prompt if item.get("type") == "image"]
    if not isinstance(originals, list) or len(originals) != len(places):
        originals = [None] * len(places)
    rest = iter(originals)
    index = str(line["index"])
    return [
        {**item, _INDEX: index, **({_ORIGINAL: next(rest)} if item.get("type") == "image" else {})}
        for item in prompt
    ]


def make_task(items: Sequence[Item], dataset: str, system_prompt: str | None) -> Task:
    """Convert a sample to a task.

    Consecutive parts of one role become one message; the default role is the user. System parts
    are appended to the agent's system prompt. Images are the dataset's original files.

    The id is the dataset and the sample's index or, without an index, the first image's file name
    (usually the index) and a hash of the question.

    Raises:
        OSError: An image cannot be read.
        ValueError: A part is neither text nor image, or has an unknown role.
    """
    system = [system_prompt] if system_prompt else []
    turns: list[tuple[Role, list[Part]]] = []
    for item in items:
        role = item.get("role", "user")
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"a part of the sample has the unknown role {role!r}")
        part = _part(item)
        if role == "system" and isinstance(part, str):
            system.append(part)
        elif turns and turns[-1][0] == role:
            turns[-1][1].append(part)
        else:
            turns.append((role, [part]))
    messages = [Message(role, tuple(parts)) for role, parts in turns]
    if system:
        messages.insert(0, Message("system", ("\n\n".join(system),)))
    index = next((item[_INDEX] for item in items if _INDEX in item), None)
    return Task(
        id=f"{dataset}/{_digest(items, messages) if index is None else index}",
        messages=tuple(messages),
        data_source=dataset,
        metadata={} if index is None else {"index": index},
    )


def _part(item: Item) -> Part:
    if item["type"] == "text":
        return str(item["value"])
    if item["type"] != "image":
        raise ValueError(f"a part of the sample is of type {item['type']!r}: only text and image")
    path = Path(item["value"])
    original = _original(item.get(_ORIGINAL), path)
    return EncodedImage(path.read_bytes() if original is None else original)


def _original(text: Any, path: Path) -> bytes | None:
    """Return the dataset's image file from which VLMEvalKit wrote ``path``.

    VLMEvalKit re-encodes images: lossy as JPEG, much larger as PNG, and without transparency, EXIF
    rotation and 16-bit depth. ``None`` if the written image has another size.
    """
    if not isinstance(text, str):
        return None
    try:
        data = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(data)) as image, Image.open(path) as written:
            same = image.size == written.size
    except (binascii.Error, OSError, ValueError):
        return None
    return data if same else None


def _digest(items: Sequence[Item], messages: Sequence[Message]) -> str:
    digest = hashlib.sha256()
    for message in messages:
        if message.role == "system":
            continue
        for part in message.parts:
            named = part.sha256 if isinstance(part, EncodedImage) else part
            digest.update(named.encode("utf-8", "replace"))
    first = next((Path(item["value"]).stem for item in items if item["type"] == "image"), None)
    return f"{first}-{digest.hexdigest()[:12]}" if first else digest.hexdigest()[:12]
