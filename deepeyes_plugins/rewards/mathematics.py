"""Mathematical answers: the same value, however it is typeset."""

from __future__ import annotations

import re

from deepeyes_plugins.rewards.accuracy import rule_verdict
from deepeyes_plugins.rewards.latex import canonical
from deepeyes_plugins.rewards.values import Oracle, Text, read, same

_BOXED = ("\\boxed{", "\\fbox{")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_PROSE = re.compile(r"[^\W\d_]{3}")


def boxed(text: str) -> list[str]:
    r"""Return what stands in each complete ``\boxed{…}``, braces inside counted; linear in time."""
    found = []
    position = 0
    while (start := text.find(_BOXED[0], position)) >= 0:
        start += len(_BOXED[0])
        depth = 1
        end = start
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        found.append(text[start : end - 1])
        position = end
    return found


def bare_mathematics(answer: str) -> str:
    r"""Take off what only wraps an answer: ``\boxed{}``, ``$`` and a final full stop."""
    text = answer.strip()
    while True:
        before = text
        text = text.removesuffix(".").strip() if not text.endswith("..") else text
        for opening, closing in (*_DELIMITERS, *((box, "}") for box in _BOXED)):
            inner = text.removeprefix(opening).removesuffix(closing)
            if len(text) - len(inner) == len(opening) + len(closing) and opening not in inner:
                text = inner.strip()
        if text == before:
            return text or answer.strip()


def _undecided(_a: str, _b: str) -> None:
    return None


def mathematics_verdict(answer: str, ground_truth: str, oracle: Oracle = _undecided) -> bool | None:
    """Decide where a mathematician would be sure, by the values of answer and reference.

    Args:
        answer: The model's answer; an empty one is wrong.
        ground_truth: The reference, not empty.
        oracle: Computer algebra, for expressions; by default it is not asked.

    Returns:
        ``None`` where it takes understanding or computer algebra.
    """
    given, truth = bare_mathematics(answer), bare_mathematics(ground_truth)
    if not given:
        return False
    if given == truth:
        return True
    spelled = canonical(truth)
    if spelled is not None and len(spelled) == 1 and spelled.isalpha():
        return rule_verdict(given, spelled) or rule_verdict(canonical(given) or given, spelled)
    value, other = read(truth), read(given)
    if value is None or other is None:
        return None
    if isinstance(value, Text) and isinstance(other, Text):
        is_prose = _PROSE.search(value.text) and _PROSE.search(other.text)
        return rule_verdict(other.text, value.text) if is_prose else (value == other or None)
    return same(value, other, oracle)
