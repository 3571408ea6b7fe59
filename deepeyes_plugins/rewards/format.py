"""Format checks and answer extraction, on the assistant's turns only.

The reference implementations count tags over the whole trajectory, so that a tag in tool output
changes the reward; here it cannot. Every check takes linear time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from deepeyes_plugins.protocol.actions import AnswerAction, parse_action
from deepeyes_plugins.rewards.mathematics import boxed

_TAG = re.compile(r"</?(?:think|code|tool_call|answer)>")
_BOX = r"\boxed{"


def _balanced(text: str, tag: str) -> bool:
    return text.count(f"<{tag}>") == text.count(f"</{tag}>")


def _ending(turns: Sequence[str]) -> str:
    return turns[-1].rpartition("</think>")[2] if turns else ""


def final_answer(turns: Sequence[str]) -> str | None:
    """Return the first answer after the last ``</think>``, stripped; ``None`` without one.

    Args:
        turns: The assistant's turns in order.
    """
    action = parse_action(turns[-1]) if turns else None
    return action.text if isinstance(action, AnswerAction) else None


def boxed_answer(turns: Sequence[str]) -> str | None:
    r"""Return the last ``\boxed{…}`` after the last ``</think>``, stripped; ``None`` without one.

    A turn that calls a tool or runs code has no answer, whatever it boxes.
    """
    action = parse_action(turns[-1]) if turns else None
    if action is not None and not isinstance(action, AnswerAction):
        return None
    found = boxed(_ending(turns))
    return found[-1].strip() if found else None


def is_well_formed(turns: Sequence[str], *, tool_calls: bool = False) -> bool:
    """Return whether the tags are complete and there is an answer, as in DeepEyesV2.

    Args:
        turns: The assistant's turns in order, including the prefilled ``<think>``; a missing first
            ``<think>`` is inserted, since the prompt prefills it.
        tool_calls: Whether ``<tool_call>`` tags must be balanced, as for search data.
    """
    if not turns:
        return False
    text = "".join(turns)
    if not turns[0].lstrip().startswith("<think>"):
        text = "<think>" + text
    if "<think>" not in text or not _balanced(text, "think") or not _balanced(text, "code"):
        return False
    if tool_calls and not _balanced(text, "tool_call"):
        return False
    return _balanced(_ending(turns), "answer") and _sound(final_answer(turns))


def is_well_formed_toolbox(turns: Sequence[str]) -> bool:
    """Return whether the tags are complete and there is an answer, as in DeepEyes V1.

    Thinking is optional. Unlike the published check, it requires an answer.
    """
    balanced = _balanced("".join(turns), "think") and _balanced(_ending(turns), "answer")
    return balanced and _sound(final_answer(turns))


def is_well_formed_boxed(turns: Sequence[str]) -> bool:
    r"""Return whether thinking is closed and exactly one ``\boxed{…}`` follows, as in DeepEyes."""
    return (
        _balanced("".join(turns), "think")
        and _ending(turns).count(_BOX) == 1
        and _sound(boxed_answer(turns))
    )


def _sound(answer: str | None) -> bool:
    """Return whether there is an answer without tags inside."""
    return bool(answer) and not _TAG.search(answer or "")
