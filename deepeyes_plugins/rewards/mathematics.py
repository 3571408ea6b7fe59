"""Comparison of mathematical answers by value, independent of notation."""

from __future__ import annotations

import re

from deepeyes_plugins.rewards.latex import canonical
from deepeyes_plugins.rewards.rules import rule_verdict
from deepeyes_plugins.rewards.values import Oracle, Text, read, same

_BOXED = ("\\boxed{", "\\fbox{")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_PROSE = re.compile(r"[^\W\d_]{3}")


def boxed(text: str) -> list[str]:
    r"""Return the content of each complete ``\boxed{…}``, with nested braces, in linear time."""
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
    r"""Remove wrappers of an answer: ``\boxed{}``, ``$`` and a final full stop."""
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
    """Compare the values of answer and reference.

    Args:
        answer: The model's answer; an empty one is wrong.
        ground_truth: The reference, not empty.
        oracle: Computer algebra for expressions; none by default.

    Returns:
        Whether they are equal; ``None`` if that needs a judge or computer algebra.
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
