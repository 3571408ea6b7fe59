"""Read the rows of the published reinforcement-learning data sets as tasks.

The columns are verl's: ``prompt`` (role and content, ``<image>`` where an image stands),
``images``, ``data_source``, ``reward_model`` and ``extra_info``, and ``env_name``, which chooses
the environment.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

from PIL import Image, ImageFile

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.media import is_inline, local_path, read_media
from deepeyes_plugins.data.message_parts import image_source, is_list, plain_contents
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
"""Names in published files that no code knows any more, and what they mean."""

_ROLES: tuple[str, ...] = get_args(Role)

logger = logging.getLogger(__name__)


def task_from_row(row: Mapping[str, Any]) -> Task:
    """Make a task of one row.

    Args:
        row: A row of a parquet file, or what verl's data set makes of it (there ``raw_prompt``
            holds the images within the messages and takes the place of ``prompt``).

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
    """Return the prompt with its images in their places; all other control strings are text.

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
    """Return a row whose prompt is text: images within its messages are moved to ``images``.

    Raises:
        RowError: A message has a part that is neither a text nor an image.
    """
    prompt: Any = row.get("prompt")
    if not is_list(prompt):
        return row  # Refused by whoever reads it.
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
        RowError: There is none.
    """
    source = row.get("data_source")
    if is_missing(source) or not isinstance(source, str):
        raise RowError("no 'data_source'; it chooses the reward")
    return source


def ground_truth(row: Mapping[str, Any]) -> str:
    """Return the reference answer.

    Raises:
        RowError: There is none (a NaN of a data frame is none either), or it is no text or number.
    """
    reward_model = row.get("reward_model")
    truth = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    if is_missing(truth):
        raise RowError("no ground truth in 'reward_model'")
    if not isinstance(truth, str | int | float):
        raise RowError(
            f"the ground truth in 'reward_model' is a {type(truth).__name__}, not a text"
        )
    return str(truth)


def metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``extra_info`` without the answer, which tools and logs have no need of.

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
    """Translate the messages that verl's data set hands to an agent loop.

    The bytes of an image file are kept where they are at hand, so that tools see the image in its
    original size and encoding.

    Args:
        raw_prompt: Messages whose content is a string or a list of entries
            ``{"type": "text", "text"}`` and ``{"type": "image", ...}``.

    Raises:
        RowError: A message is not of that form, or an image cannot be read.
    """
    return _messages(raw_prompt, iter(()))


def environment_name(row: Mapping[str, Any], default: str) -> str:
    """Return the environment that a row asks for.

    Args:
        row: A row; its ``env_name`` decides, where it is empty the answer is ``none``.
        default: The answer for data sets without that column.
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


def image_from(entry: Any, media_root: Path | None = None) -> EncodedImage:
    """Hold an image of a row, with its original bytes where they can be had.

    Args:
        entry: Bytes, a path, a data URI, a Pillow image, or a mapping with one of them under
            ``bytes``, ``image``, ``path``, ``url`` or ``image_url`` (the first that is set counts).
        media_root: Folder that paths are relative to and must not leave; without it any path of
            this machine is read.

    Raises:
        RowError: There is no image in it, its path leaves ``media_root``, or its file cannot be
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
    raise RowError(f"{where} holds an entry that is neither a text nor an image: {entry!r:.80}")


def _sequence(value: Any, name: str, *, or_none: bool = False) -> Iterable[Any]:
    """Accept lists, tuples and NumPy arrays, which is what frameworks make of a list column."""
    if is_missing(value) and or_none:
        return ()
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        kind = "missing" if is_missing(value) else f"a {type(value).__name__}, not a list"
        raise RowError(f"'{name}' is {kind}")
    return cast(Iterable[Any], value)


def _read(path: str | Path, media_root: Path | None) -> bytes:
    if is_inline(str(path)):
        return read_media(str(path))
    file = Path(local_path(str(path)))
    if media_root is not None:
        # A link that the owner of the folder put there may lead out of it; a data file may not.
        inside = file.is_relative_to(media_root) or not file.is_absolute()
        if not inside or ".." in file.parts:
            raise RowError(
                f"image {file} is outside {media_root}; paths are relative to that folder"
            )
        file = media_root / file
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte or half a character in it.
        reason = getattr(error, "strerror", None) or error
        raise RowError(f"image {file} cannot be read: {reason}") from error


def _original(image: Image.Image) -> EncodedImage | None:
    """The file that ``image`` was opened from, if it is still at hand and of the same size."""
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


def _fingerprint(messages: Iterable[Message]) -> str:
    """Name a question that has no index by its content."""
    digest = hashlib.sha256()
    for message in messages:
        for part in message.parts:
            digest.update(part.encode() if isinstance(part, str) else part.data)
    return digest.hexdigest()[:16]


@cache
def _warn_of_stale_name(name: str) -> None:
    logger.warning(
        "env_name %r is the name of an old release: such rows run in %r (said once per process)",
        name,
        STALE_ENVIRONMENTS[name],
    )
