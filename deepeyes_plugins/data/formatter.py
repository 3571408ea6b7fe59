"""Formatter ``deepeyes``: ShareGPT-style rows as conversations in the DeepEyesV2 protocol.

Errors: roles out of order; a last turn that is not the assistant's; text that is not a string;
different numbers of ``<image>`` and images; an ``<image>`` outside a user turn; a literal
``<video>``, ``<audio>`` or control token; an assistant turn before the last one without an action,
with a malformed one, or with an answer. The last turn must answer, except in conversations of a
single assistant turn: most of the published data is plain chain of thought, which may state its
answer in any form.

Warnings: unbalanced ``<think>`` tags; an empty answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deepeyes_plugins.data.contracts import Conversation, Formatter, RowError
from deepeyes_plugins.data.message_parts import image_source, plain_contents
from deepeyes_plugins.protocol.actions import AnswerAction, MalformedAction, parse_action
from deepeyes_plugins.protocol.content import Role
from deepeyes_plugins.protocol.dialect import CONTROL_TOKENS, IMAGE_PLACEHOLDER, VISION_TOKENS
from deepeyes_plugins.protocol.missing import is_missing

ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "tool": "user",
    "observation": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
}
"""Chat template roles by role in ShareGPT-style rows."""

_RESERVED = ("<video>", "<audio>", "<|im_end|>", *VISION_TOKENS, *CONTROL_TOKENS)
_RESERVED_RESTS = tuple(token[1:] for token in _RESERVED)
_PLACEHOLDER_REST = IMAGE_PLACEHOLDER[1:]


def format_sharegpt(row: Mapping[str, Any]) -> Conversation:
    """Format a row with ``messages`` (role, content) or ``conversations`` (from, value).

    Args:
        row: One row; contents are strings or lists of parts, as in
            :func:`~deepeyes_plugins.data.message_parts.plain_contents`. Optionally with ``images``:
            paths, bytes, ``{"bytes", "path"}`` or Pillow images, one per ``<image>`` in the user
            turns; and with ``system``, the system prompt of a conversation that does not begin
            with one. Roles ``tool`` and ``observation`` are user turns.

    Raises:
        RowError: The row cannot be used for training.
    """
    messages = list(_messages(row))
    contents, images = plain_contents([content for _, content in messages], _images(row))
    turns = [(role, content) for (role, _), content in zip(messages, contents, strict=True)]
    for number, (role, content) in enumerate(turns, 1):
        if not isinstance(content, str):
            raise RowError(f"turn {number} ({role}) is a {type(content).__name__}, not a string")
    conversation = Conversation(tuple(turns), tuple(images))
    check_structure(conversation)
    check_actions(conversation)
    return conversation


def format_row(formatter: Formatter, row: Mapping[str, Any]) -> Conversation:
    """Apply a formatter and check the structure of its result.

    Raises:
        RowError: The row cannot be used, or the formatter failed on it.
    """
    try:
        conversation = formatter(row)
    except RowError:
        raise
    except Exception as error:
        raise RowError(f"the formatter failed: {error!r}") from error
    if formatter is not format_sharegpt:  # It checks by itself.
        check_structure(conversation)
    return conversation


def check_structure(conversation: Conversation) -> None:
    """Check the order of roles, placeholders and the number of images.

    Raises:
        RowError: A check fails; the message names the turn, counted from 1.
    """
    turns = conversation.turns
    system = 1 if turns and turns[0][0] == "system" else 0
    if len(turns) == system:
        raise RowError("the conversation has no user and no assistant turn")
    placeholders = 0
    for number, (role, text) in enumerate(turns, 1):
        if number > system:
            expected = "assistant" if (number - system) % 2 == 0 else "user"
            if role != expected:
                raise RowError(f"turn {number} has the role {role}; expected {expected}")
        shown = _placeholders(text, number, role)
        placeholders += shown
        if shown and role != "user":
            raise RowError(
                f"turn {number} ({role}) has an {IMAGE_PLACEHOLDER}; only user turns show images"
            )
    if turns[-1][0] != "assistant":
        raise RowError(f"the last turn is a {turns[-1][0]} turn; it must be the assistant's")
    if placeholders != len(conversation.images):
        raise RowError(
            f"{placeholders} {IMAGE_PLACEHOLDER} placeholders but {len(conversation.images)} images"
        )


def _placeholders(text: str, number: int, role: Role) -> int:
    """Count the images in a turn; refuse lone surrogates and control tokens.

    Raises:
        RowError: The text contains one.
    """
    if not text.isascii():
        try:
            text.encode("utf-16-le")  # A third of the time of UTF-8.
        except UnicodeEncodeError as error:
            raise RowError(f"turn {number} ({role}) contains a lone surrogate") from error
    count = 0
    # Ten times as fast as a search for each token.
    for piece in text.split("<")[1:]:
        if piece.startswith(_PLACEHOLDER_REST):
            count += 1
        elif piece.startswith(_RESERVED_RESTS):
            token = next(token for token in _RESERVED if f"<{piece}".startswith(token))
            raise RowError(
                f"turn {number} ({role}) contains {token}, which tokenizers read as a control "
                f"token; write it as {token.replace('<', '< ', 1)!r}"
            )
    return count


def check_actions(conversation: Conversation) -> None:
    """Check that every assistant turn acts and the last one answers, as in a rollout.

    Raises:
        RowError: A check fails; the message names the turn, counted from 1.
    """
    assistant = [
        (number, text)
        for number, (role, text) in enumerate(conversation.turns, 1)
        if role == "assistant"
    ]
    for number, text in assistant:
        action = parse_action(text)
        last = number == assistant[-1][0]
        where = f"turn {number} (assistant)"
        if isinstance(action, MalformedAction):
            raise RowError(f"{where}: {action.message}")
        if last:
            plain = action is None and len(assistant) == 1
            if not plain and not isinstance(action, AnswerAction):
                raise RowError(f"{where} is the last one but has no <answer>...</answer>")
        elif action is None:
            raise RowError(f"{where} has no action, but is not the last turn")
        elif isinstance(action, AnswerAction):
            raise RowError(f"{where} has an answer, but is not the last turn")


def check_opening(conversation: Conversation, prefill: str) -> None:
    """Check that every assistant turn begins with the prefill.

    Args:
        conversation: A formatted row.
        prefill: For instance ``<think>``; leading white space is ignored.

    Raises:
        RowError: A turn begins differently; the message names it, counted from 1.
    """
    for number, (role, text) in enumerate(conversation.turns, 1):
        if role == "assistant" and not text.startswith(prefill):
            if text.lstrip().startswith(prefill):
                continue
            raise RowError(
                f"turn {number} (assistant) does not begin with {prefill}, the prefill of every "
                f"turn in RL, but with {text[:40]!r}. Repair it, or train with the model's own "
                "template (qwen2_vl, qwen3_vl_nothink)"
            )


def row_warnings(conversation: Conversation) -> Iterator[str]:
    """Yield warnings about a valid conversation."""
    for number, (role, text) in enumerate(conversation.turns, 1):
        if role != "assistant":
            continue
        opened, closed = text.count("<think>"), text.count("</think>")
        if opened != closed:
            yield f"turn {number} (assistant) has {opened} <think> and {closed} </think>"
        if parse_action(text) == AnswerAction(""):
            yield f"turn {number} (assistant) has an empty answer"


def _messages(row: Mapping[str, Any]) -> Iterator[tuple[Role, Any]]:
    messages = row.get("messages")
    if is_missing(messages):
        messages = row.get("conversations")
    if not isinstance(messages, list | tuple):
        # Hugging Face datasets fills missing columns with null.
        there = {str(key): value for key, value in row.items() if not is_missing(value)}
        listed = ", ".join(f"{key} ({type(there[key]).__name__})" for key in sorted(there))
        raise RowError(
            "no list 'messages' (with role and content) or 'conversations' (with from and value); "
            f"the row has {listed or 'nothing'}"
        )
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise RowError(f"'system' is a {type(system).__name__}, not a string")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, (dict, Mapping)):  # Checking dict first is faster.
            raise RowError(f"turn {number} is a {type(message).__name__}, not a role and a content")
        role, content = message.get("role"), message.get("content")
        if role is None and content is None:
            role, content = message.get("from"), message.get("value")
        if not isinstance(role, str) or role not in ROLES:
            raise RowError(f"turn {number} has the unknown role {role!r}")
        if system and number == 1 and ROLES[role] != "system":
            yield "system", system
        yield ROLES[role], content


def _images(row: Mapping[str, Any]) -> list[Any]:
    images = row.get("images")
    if is_missing(images):
        if not is_missing(row.get("image")):
            raise RowError(
                "the row has 'image', as in LLaVA's data; rename it to 'images', a list: "
                "'images': [...]"
            )
        return []
    if not isinstance(images, list | tuple):
        raise RowError(f"'images' is a {type(images).__name__}, not a list")
    sources = list(map(image_source, images))
    for number, image in enumerate(sources, 1):
        if image is None:
            raise RowError(f"image {number} of 'images' is empty")
    return sources
