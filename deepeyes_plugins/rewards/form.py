"""Is a trajectory well formed? The format score of DeepEyesV2, on the assistant's turns only.

The reference counts tags over the whole trajectory, tool output included, so that a page which
prints a tag changes the reward; here tool output cannot.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepeyes_plugins.protocol.actions import AnswerAction, parse_action


def _balanced(text: str, tag: str) -> bool:
    return text.count(f"<{tag}>") == text.count(f"</{tag}>")


def final_answer(turns: Sequence[str]) -> str | None:
    """Return the first answer after the last ``</think>``, stripped; ``None`` without one.

    Args:
        turns: The assistant's turns in order.
    """
    action = parse_action(turns[-1]) if turns else None
    return action.text if isinstance(action, AnswerAction) else None


def is_well_formed(turns: Sequence[str], *, tool_calls: bool = False) -> bool:
    """Return whether the tags of a trajectory are complete and it ends with an answer.

    Args:
        turns: The assistant's turns in order, the prefilled ``<think>`` included; a first
            ``<think>`` that is missing is supplied, since the prompt prefills it.
        tool_calls: Also ask for balanced ``<tool_call>`` tags, as for search data.
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
    ending = turns[-1].rpartition("</think>")[2]
    return _balanced(ending, "answer") and bool(final_answer(turns))
