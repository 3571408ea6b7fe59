"""Read the one action of an assistant turn.

The forms and their precedence are those of the DeepEyesV2 training code (Visual-Agent/DeepEyesV2):
a complete answer ends the episode first; else the last ``<code>`` block; else the last
``<tool_call>``. What is malformed is not guessed: it becomes a :class:`MalformedAction` whose
message tells the model what to write instead.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_CODE = re.compile(r"<code>(.*?)</code>", re.DOTALL)
# The closing fence ends its line, so that backticks inside the code do not end the block.
_FENCE = re.compile(
    r"```(?:python|py)?[ \t]*\r?\n(.*?)(?:\r?\n)?[ \t]*```[ \t]*(?=\r?\n|\Z)", re.DOTALL
)
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_THINK_END = "</think>"


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
    """An action was begun but cannot be carried out; ``message`` is for the model."""

    message: str


Action = CodeAction | ToolCallAction | AnswerAction | MalformedAction


def parse_action(text: str) -> Action | None:
    """Return the action of one assistant turn, or ``None`` if it holds none.

    Args:
        text: The whole assistant turn, prefilled ``<think>`` included. Tags inside the thinking
            (before the last ``</think>``) are not actions: a model may mention them.

    Returns:
        The action by precedence answer, code, tool call.
    """
    body = text.rpartition(_THINK_END)[2]
    if answer := _ANSWER.search(body):
        return AnswerAction(answer.group(1).strip())
    if "<code>" in body:
        return _parse_code(body)
    if "<tool_call>" in body:
        return _parse_tool_call(body)
    return None


def _parse_code(body: str) -> Action:
    blocks = _CODE.findall(body)
    if not blocks:
        return MalformedAction("The <code> block is not closed. Close it with </code>.")
    fence = _FENCE.search(blocks[-1])
    if fence is None:
        return MalformedAction(
            "The <code> block holds no fenced Python. Write <code>, a line ```python, the code, "
            "a line ``` and </code>."
        )
    return CodeAction(fence.group(1))


def _parse_tool_call(body: str) -> Action:
    blocks = _TOOL_CALL.findall(body)
    if not blocks:
        return MalformedAction("The <tool_call> is not closed. Close it with </tool_call>.")
    try:
        call = json.loads(blocks[-1])
    except (ValueError, RecursionError) as error:
        return MalformedAction(f"The <tool_call> is not valid JSON: {error}.")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return MalformedAction('A <tool_call> is a JSON object with a string "name".')
    arguments = call.get("arguments", {})
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return MalformedAction('The "arguments" of a <tool_call> are a JSON object.')
    return ToolCallAction(call["name"], arguments)


def complete_at_tag(text: str, closing_tags: tuple[str, ...]) -> str:
    """Cut ``text`` behind the first closing tag, as an engine with stop strings would.

    Args:
        text: Generated text from an engine that may have run past the tag.
        closing_tags: For instance ``("</code>", "</tool_call>")``.

    Returns:
        ``text`` up to and with the earliest tag; unchanged where there is none.
    """
    ends = [text.index(tag) + len(tag) for tag in closing_tags if tag in text]
    return text[: min(ends)] if ends else text
