"""Reconstruction of a trajectory from a decoded response, for agent loops without trajectories.

With special tokens the turns are exact: tool output cannot contain ``<|im_start|>``, which is
escaped, and the policy cannot generate it. verl decodes without special tokens; then only role
names remain, which tool output may contain, too. In that case an observation extends to its last
possible end, so that ambiguous text counts as tool output rather than as the model's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from deepeyes_plugins.protocol.actions import (
    AnswerAction,
    CodeAction,
    MalformedAction,
    ToolCallAction,
    parse_action,
)
from deepeyes_plugins.protocol.dialect import TURN_END
from deepeyes_plugins.rollout import EndReason, Trajectory, TurnRecord
from deepeyes_plugins.rollout.trajectory import ActionKind, PartRecord

TURN_START = "<|im_start|>"
PADDING = "<|endoftext|>"
_VISION = re.compile(r"<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>")

_CODE_HEAD = "Code execution result:\nstdout:\n```\n"
_CODE_TAIL = "\n```\n\nstderr:\n```\n"
_TOOL_HEAD, _TOOL_TAIL = "<tool_response>", "</tool_response>"
_OPENING = re.compile(rf"\n?\nuser\n(?={re.escape(_CODE_HEAD)}|{_TOOL_HEAD})")
_CLOSING = re.compile(r"(?:```|Images:\n?|</tool_response>)\n?\nassistant(?:\n|\Z)")

_FAILED = re.compile(r"\A<tool_response>\s*Error:")
_STDERR = re.compile(r"\n```\n\nstderr:\n```\n(.*?)\n?```", re.DOTALL)
_LAST_LINE_OF_ERROR = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Timeout))\b")
UNSEEN_IMAGE = "unseen"
"""Placeholder for an image whose bytes are not available."""


def recover_trajectory(solution: str) -> Trajectory:
    """Reconstruct turns, tool calls and observations from a decoded response.

    Args:
        solution: The response, decoded with or without special tokens, without the first turn's
            prefill ``<think>``.

    Returns:
        A trajectory without a task; token counts and times are unknown.
    """
    solution = solution.replace(PADDING, "")
    exact = TURN_START in solution
    parts = list(
        _split_at_tokens(solution) if exact else _split_at_roles(solution.replace(TURN_END, ""))
    )
    turns = [_turn(text, observation) for text, observation in parts]
    answer = parse_action(turns[-1].text) if turns else None
    if not isinstance(answer, AnswerAction):
        return Trajectory(task_id="", turns=turns, end_reason=EndReason.NO_ACTION)
    return Trajectory(task_id="", turns=turns, answer=answer.text, end_reason=EndReason.ANSWER)


def _split_at_tokens(solution: str) -> Iterator[tuple[str, str | None]]:
    """Split at the tokens that open a turn, into pairs of assistant turn and observation."""
    text = None
    for number, block in enumerate(solution.split(TURN_START)):
        body = block.rstrip().removesuffix(TURN_END)
        role, _, content = ("assistant", "", body) if number == 0 else body.partition("\n")
        if role == "user":
            yield text or "", content
            text = None
        else:
            if text is not None:
                yield text, None
            text = content
    if text is not None:
        yield text, None


def _split_at_roles(solution: str) -> Iterator[tuple[str, str | None]]:
    """Split at role names, into pairs of assistant turn and observation."""
    first, *later = _OPENING.split(solution.rstrip())
    text, observation = first, ""
    for piece in later:
        # An observation ends after its own last part, whatever its body contains.
        is_code = (observation or piece).startswith(_CODE_HEAD.partition("\n")[0])
        last_part = _CODE_TAIL if is_code else _TOOL_TAIL
        tail = piece.rfind(last_part)
        ends = list(_CLOSING.finditer(piece, tail)) if tail >= 0 else []
        if not ends:
            # Tool output that looks like the start of an observation, or a truncated response.
            observation += piece
            continue
        end = ends[-1]
        yield text, observation + piece[: end.start()] + end[0].rpartition("\nassistant")[0]
        text, observation = piece[end.end() :], ""
    yield text, observation or None


def _turn(text: str, observation: str | None) -> TurnRecord:
    action = parse_action(text)
    kinds: dict[type, ActionKind] = {
        CodeAction: "code",
        ToolCallAction: "tool_call",
        AnswerAction: "answer",
        MalformedAction: "malformed",
    }
    record = TurnRecord(text=text, action=kinds[type(action)] if action is not None else None)
    if observation is None:
        return record
    record.error = _error(observation)
    if isinstance(action, CodeAction):
        record.tool = "python"
    elif isinstance(action, ToolCallAction):
        record.tool = action.name
    images = len(_VISION.findall(observation)) or _implied_images(record, observation)
    record.observation = [
        PartRecord(text=_VISION.sub("", observation)),
        *[PartRecord(image=UNSEEN_IMAGE)] * images,
    ]
    return record


def _implied_images(record: TurnRecord, observation: str) -> int:
    """Infer the number of images whose tokens were dropped."""
    if record.error is not None:
        return 0
    zoomed = (
        record.tool is not None
        and record.tool.startswith("image_")
        and (record.tool.endswith("_tool"))
    )
    drawn = record.tool == "python" and observation.rstrip().endswith("\nImages:")
    return int(zoomed or drawn)


def _error(observation: str) -> str | None:
    """Return the error of an observation: a tool error, or an exception in its stderr."""
    if _FAILED.match(observation):
        return observation
    stderr = _STDERR.findall(observation)
    last = stderr[-1].strip().splitlines()[-1:] if stderr else []
    match = _LAST_LINE_OF_ERROR.match(last[0]) if last else None
    return match[1] if match else None
