"""Parser of the action of an assistant turn.

Formats and precedence are those of the DeepEyesV2 training code (Visual-Agent/DeepEyesV2): a
complete answer; else the last ``<code>`` block; else the last ``<tool_call>``. A malformed action
becomes a :class:`MalformedAction`, whose message tells the model what to write instead.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

# The opening fence ends its line; the closing one has its own line, so that backticks inside the
# code do not end the block. Without such a line it may follow the last statement.
_OPENING_FENCE = re.compile(r"```(?:python|py)?[ \t]*\r?\n")
_CLOSING_LINE = re.compile(r"(?:\A|\r?\n)[ \t]*```[ \t]*(?=\r?\n|\Z)")
_CLOSING_FENCE = re.compile(r"```[ \t]*(?=\r?\n|\Z)")
_THINK_END = "</think>"
_ARGUMENTS = ("arguments", "parameters")
"""Keys of a call's arguments: that of the protocol first, then that of other models."""
_ENVELOPE = ("name", "id", "type")


@dataclass(frozen=True, slots=True)
class CodeAction:
    """Python source to run in the sandbox, without its fence."""

    code: str


@dataclass(frozen=True, slots=True)
class ToolCallAction:
    """A named tool with its JSON arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AnswerAction:
    """The final answer, stripped; it may be empty."""

    text: str


@dataclass(frozen=True, slots=True)
class MalformedAction:
    """An action that cannot be executed; ``message`` is for the model."""

    message: str


Action = CodeAction | ToolCallAction | AnswerAction | MalformedAction


def parse_action(text: str) -> Action | None:
    """Return the action of one assistant turn, or ``None`` without one.

    Args:
        text: The whole assistant turn, including the prefilled ``<think>``. Tags inside the
            thinking (before the last ``</think>``) are no actions.

    Returns:
        The action by precedence answer, code, tool call.
    """
    body = text.rpartition(_THINK_END)[2]
    if answers := _blocks(body, "answer"):
        return AnswerAction(answers[0].strip())
    if "<code>" in body:
        return _parse_code(body)
    if "<tool_call>" in body:
        return _parse_tool_call(body)
    return None


def _blocks(text: str, tag: str) -> list[str]:
    """Return the texts between each opening tag and the next closing one.

    Takes linear time; a lazy regular expression is quadratic in unclosed tags.
    """
    blocks = []
    for piece in text.split(f"</{tag}>")[:-1]:
        _, opened, block = piece.partition(f"<{tag}>")
        if opened:
            blocks.append(block)
    return blocks


def _fenced(block: str) -> str | None:
    """Return the code between the first fences in ``block``."""
    opening = _OPENING_FENCE.search(block)
    if opening is None:
        return None
    rest = block[opening.end() :]
    if closing := _CLOSING_LINE.search(rest):
        return rest[: closing.start()]
    if closing := _CLOSING_FENCE.search(rest):
        return rest[: closing.start()].rstrip(" \t")
    return None


def _parse_code(body: str) -> Action:
    blocks = _blocks(body, "code")
    if not blocks:
        return MalformedAction("The <code> block is not closed. Close it with </code>.")
    code = _fenced(blocks[-1])
    if code is None:
        return MalformedAction(
            "The <code> block holds no fenced Python. Write <code>, a line ```python, the code, "
            "a line ``` and </code>."
        )
    return CodeAction(code)


def _parse_tool_call(body: str) -> Action:
    blocks = _blocks(body, "tool_call")
    if not blocks:
        return MalformedAction("The <tool_call> is not closed. Close it with </tool_call>.")
    try:
        call = json.loads(blocks[-1])
    except (ValueError, RecursionError) as error:
        return MalformedAction(f"The <tool_call> is not valid JSON: {error}.")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return MalformedAction('A <tool_call> is a JSON object with a string "name".')
    given = [call[key] for key in _ARGUMENTS if call.get(key) not in (None, "")]
    stray = [key for key in call if key not in (*_ARGUMENTS, *_ENVELOPE)]
    if not given and stray:
        return MalformedAction(
            f'A <tool_call> has its arguments under "arguments", as a JSON object, and not beside '
            f'"name"; found: {", ".join(stray)}.'
        )
    if len(given) > 1 and given[0] != given[1]:
        return MalformedAction(
            'A <tool_call> has both "arguments" and "parameters", and they differ: write '
            '"arguments" only.'
        )
    arguments = given[0] if given else {}
    if isinstance(arguments, str):
        # JSON text, as in OpenAI's API.
        with contextlib.suppress(ValueError, RecursionError):  # Refused below.
            arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        return MalformedAction('The "arguments" of a <tool_call> are a JSON object.')
    return ToolCallAction(call["name"], arguments)


def complete_at_tag(text: str, closing_tags: tuple[str, ...]) -> str:
    """Truncate ``text`` after the first closing tag, as an engine with stop strings does.

    Args:
        text: Generated text, which may continue after the tag.
        closing_tags: For instance ``("</code>", "</tool_call>")``.

    Returns:
        ``text`` up to and with the earliest tag; unchanged where there is none.
    """
    ends = [text.index(tag) + len(tag) for tag in closing_tags if tag in text]
    return text[: min(ends)] if ends else text
