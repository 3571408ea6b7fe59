"""RL rows as tasks.

The columns are verl's: ``prompt`` (role and content with ``<image>`` placeholders), ``images``,
``data_source``, ``reward_model`` and ``extra_info``, and ``env_name``, which chooses the
environment.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.images import image_from
from deepeyes_plugins.data.message_parts import is_list, plain_contents
from deepeyes_plugins.protocol.content import (
    EncodedImage,
    Message,
    Part,
    Role,
    fill_placeholders,
)
from deepeyes_plugins.protocol.dialect import IMAGE_PLACEHOLDER
from deepeyes_plugins.protocol.missing import is_missing, text_of
from deepeyes_plugins.protocol.observations import plain
from deepeyes_plugins.rollout.contracts import Task

NO_ENVIRONMENT = "none"
STALE_ENVIRONMENTS: Mapping[str, str] = {"code_toolbox_lingyi_v1": "deepeyes_v2"}
"""Old names in published files, and their current names."""

_ROLES: tuple[str, ...] = get_args(Role)

logger = logging.getLogger(__name__)


def task_from_row(row: Mapping[str, Any]) -> Task:
    """Convert a row to a task.

    Args:
        row: A row of a parquet file, or of verl's data set, in which ``raw_prompt`` has the images
            within the messages and replaces ``prompt``.

    Raises:
        RowError: A column is missing or wrong; the message names it.
    """
    messages = prompt_messages(row)
    extra_info = metadata(row)
    index = extra_info.get("index")
    return Task(
        id=text_of(index) or _fingerprint(messages),
        messages=messages,
        data_source=data_source(row),
        ground_truth=ground_truth(row),
        metadata=extra_info,
    )


def prompt_messages(row: Mapping[str, Any], media_root: Path | None = None) -> tuple[Message, ...]:
    """Return the prompt with its images in place; other control strings stay text.

    Args:
        row: As in :func:`task_from_row`.
        media_root: As in :func:`image_from`.

    Raises:
        RowError: It does not end with a user message, or placeholders and images do not match.
    """
    if row.get("raw_prompt") is not None:
        messages = messages_from_raw_prompt(row["raw_prompt"])
    else:
        row = plain_row(row)
        entries = list(_sequence(row.get("images"), "images", or_none=True))
        images = (image_from(entry, media_root) for entry in entries)
        singular = not entries and not is_missing(row.get("image"))
        hint = "; the row has 'image': rename it to 'images', a list" if singular else ""
        messages = _messages(row.get("prompt"), images, hint)
        if left_over := sum(1 for _ in images):
            raise RowError(
                f"{len(entries)} images in 'images' but only {len(entries) - left_over} "
                f"{IMAGE_PLACEHOLDER} placeholders in 'prompt'"
            )
    if not messages or messages[-1].role != "user":
        raise RowError("'prompt' does not end with a user message")
    return messages


def plain_row(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row with images within its messages moved to ``images``.

    Raises:
        RowError: A message has a part that is neither text nor an image.
    """
    prompt: Any = row.get("prompt")
    if not is_list(prompt):
        return row  # Refused by the caller.
    contents = [one.get("content") if isinstance(one, Mapping) else None for one in prompt]
    if all(content is None or isinstance(content, str) for content in contents):
        return row
    images = list(_sequence(row.get("images"), "images", or_none=True))
    plain, images = plain_contents(contents, images)
    messages = [
        {**message, "content": content} if isinstance(message, Mapping) else message
        for message, content in zip(prompt, plain, strict=True)
    ]
    return {**row, "prompt": messages, "images": images}


def data_source(row: Mapping[str, Any]) -> str:
    """Return the data set that the row comes from.

    Raises:
        RowError: The row has none.
    """
    source = row.get("data_source")
    if is_missing(source) or not isinstance(source, str):
        raise RowError("no 'data_source'; it chooses the reward")
    return source


def ground_truth(row: Mapping[str, Any]) -> str:
    """Return the reference answer.

    Raises:
        RowError: The row has none (NaN counts as none), or it is neither a string nor a number.
    """
    reward_model = row.get("reward_model")
    truth = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    if is_missing(truth):
        raise RowError("no ground truth in 'reward_model'")
    if not isinstance(truth, str | int | float):
        raise RowError(
            f"the ground truth in 'reward_model' is a {type(truth).__name__}, not a string"
        )
    return str(truth)


def metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``extra_info`` without the answer, which tools and logs do not need.

    Raises:
        RowError: It is not a mapping.
    """
    extra_info = row.get("extra_info")
    if is_missing(extra_info):
        return {}
    if not isinstance(extra_info, Mapping):
        raise RowError(f"'extra_info' is a {type(extra_info).__name__}, not a mapping")
    return {key: value for key, value in extra_info.items() if key != "answer"}


def messages_from_raw_prompt(raw_prompt: Iterable[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Convert the messages that verl's data set passes to an agent loop.

    Original image files are used where available, so that tools see the image in its original
    size and encoding.

    Args:
        raw_prompt: Messages whose content is a string or a list of entries
            ``{"type": "text", "text"}`` and ``{"type": "image", ...}``.

    Raises:
        RowError: A message is not of that form, or an image cannot be read.
    """
    return _messages(raw_prompt, iter(()))


def environment_name(row: Mapping[str, Any], default: str) -> str:
    """Return the environment of a row.

    Args:
        row: A row; an empty ``env_name`` means ``none``.
        default: Environment for rows without that column.
    """
    if "env_name" not in row:
        return default
    if is_missing(row["env_name"]):
        return NO_ENVIRONMENT
    name = str(row["env_name"])
    if name in STALE_ENVIRONMENTS:
        _warn_of_stale_name(name)
        return STALE_ENVIRONMENTS[name]
    return name


def _messages(prompt: Any, images: Iterator[EncodedImage], hint: str = "") -> tuple[Message, ...]:
    messages = []
    for number, message in enumerate(_sequence(prompt, "prompt"), 1):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            raise RowError(f"message {number} of 'prompt' has no role of {', '.join(_ROLES)}")
        role = cast(Role, message["role"])
        content = message.get("content")
        if isinstance(content, str):
            try:
                parts = fill_placeholders(content, images, IMAGE_PLACEHOLDER)
            except RowError:
                raise
            except ValueError as error:
                raise RowError(
                    f"more {IMAGE_PLACEHOLDER} placeholders in 'prompt' than images in 'images': "
                    f"message {number} lacks one{hint}"
                ) from error
        else:
            where = f"message {number} of 'prompt'"
            parts = tuple(
                _part(entry, where) for entry in _sequence(content, f"content of {where}")
            )
        messages.append(plain(Message(role, parts)))
    return tuple(messages)


def _part(entry: Any, where: str) -> Part:
    if isinstance(entry, Mapping):
        if entry.get("type") == "image":
            return image_from(entry)
        if isinstance(entry.get("text"), str):
            return cast(str, entry["text"])
    raise RowError(f"{where} has an entry that is neither text nor an image: {entry!r:.80}")


def _sequence(value: Any, name: str, *, or_none: bool = False) -> Iterable[Any]:
    """Accept lists, tuples and NumPy arrays, the forms of a list column in frameworks."""
    if is_missing(value) and or_none:
        return ()
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        kind = "missing" if is_missing(value) else f"a {type(value).__name__}, not a list"
        raise RowError(f"'{name}' is {kind}")
    return cast(Iterable[Any], value)


def _fingerprint(messages: Iterable[Message]) -> str:
    """Return a content hash as the name of a question without an index."""
    digest = hashlib.sha256()
    for message in messages:
        for part in message.parts:
            digest.update(part.encode() if isinstance(part, str) else part.data)
    return digest.hexdigest()[:16]


@cache
def _warn_of_stale_name(name: str) -> None:
    logger.warning(
        "env_name %r is an old name: its rows run in %r (logged once per process)",
        name,
        STALE_ENVIRONMENTS[name],
    )
