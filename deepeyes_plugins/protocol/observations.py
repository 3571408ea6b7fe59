"""Rendering of tool results as observations.

The formats equal those of the DeepEyesV2 and DeepEyes training code byte for byte, since released
checkpoints depend on them. Tool results and texts of users and data sets are data: control strings
in them are defused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deepeyes_plugins.protocol.content import EncodedImage, Message, Part, encodable

MAXIMUM_IMAGES = 10
"""Maximum number of images in an observation, as in the DeepEyesV2 training code."""

_CONTROL = re.compile(r"<(?=\|[A-Za-z0-9_]+\|>|(?:image|video|audio)>)")


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One web page, or one result of an image search (``image`` may be missing)."""

    title: str
    link: str = ""
    snippet: str = ""
    date: str = ""
    image: EncodedImage | None = None


def defuse(text: str) -> str:
    """Turn control strings in ``text`` into plain text by a space after the ``<``.

    ``<|im_start|>`` becomes ``< |im_start|>`` and ``<image>`` becomes ``< image>``, which no
    tokenizer, chat template or dataset converter reads as control tokens. Lone surrogates, on which
    tokenizers fail, become U+FFFD. All other text is unchanged.
    """
    return _CONTROL.sub("< ", encodable(text))


def plain(message: Message) -> Message:
    """Return ``message`` with defused texts; see :func:`defuse`.

    For messages of users, data sets and tools, not for the model's own turns.
    """
    parts = tuple(defuse(part) if isinstance(part, str) else part for part in message.parts)
    joined = _join(*parts)
    if any(isinstance(part, str) and _CONTROL.search(part) for part in joined):
        # Neighbouring texts, which chat templates join, form a control token.
        parts = tuple(defuse(part) if isinstance(part, str) else part for part in joined)
    return message if parts == message.parts else Message(message.role, parts)


def code_observation(
    stdout: str, stderr: str, images: Sequence[EncodedImage] = ()
) -> tuple[Part, ...]:
    """Render the result of a code action: output streams, then images."""
    text = (
        f"Code execution result:\nstdout:\n```\n{defuse(stdout)}\n```\n\n"
        f"stderr:\n```\n{defuse(stderr)}\n```\n\n"
    )
    if not images:
        return (text.strip(),)
    return (text + "Images:\n", *images[:MAXIMUM_IMAGES])


def tool_response(body: Sequence[Part]) -> tuple[Part, ...]:
    """Wrap parts that are already rendered in ``<tool_response>`` tags."""
    return _join("<tool_response>\n", *body, "\n</tool_response>")


def text_search_observation(query: str, results: Sequence[SearchResult]) -> tuple[Part, ...]:
    """Render the results of a text search, numbered from 1."""
    entries = []
    for number, result in enumerate(results, 1):
        entry = f"{number}. [{defuse(result.title)}]({defuse(result.link)})"
        if result.date:
            entry += f"\nDate published: {defuse(result.date)}"
        entry += "\n"
        if result.snippet:
            entry += f"\n{defuse(result.snippet)}"
        entries.append(entry)
    head = f"A Google search for '{defuse(query)}' found {len(results)} results:\n\n"
    return tool_response([head + "## Web Results\n" + "\n\n".join(entries)])


def image_search_observation(results: Sequence[SearchResult]) -> tuple[Part, ...]:
    """Render the results of an image search; at most ten have their image."""
    head = f"A Google image search for the image found {len(results)} results:\n\n"
    parts: list[Part] = [head + "## Web Results\n"]
    carried = 0
    for number, result in enumerate(results, 1):
        parts.append(("" if number == 1 else "\n\n") + f"{number}. ")
        if result.image is not None and carried < MAXIMUM_IMAGES:
            parts.append(result.image)
            carried += 1
        parts.append(f"\n[{defuse(result.title)}] \n")
    return tool_response(parts)


def _join(*parts: Part) -> tuple[Part, ...]:
    """Merge neighbouring text parts."""
    merged: list[Part] = []
    for part in parts:
        if merged and isinstance(part, str) and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return tuple(merged)
