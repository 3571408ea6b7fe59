"""Rule-based accuracy: what can be decided without a judge."""

from __future__ import annotations

import re
import string
from fractions import Fraction

_OPTION = re.compile(r"^\(?([A-Za-z])(?:[).:]|\s*$)")
_NUMBER = re.compile(r"^[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?%?$")
_ARTICLES = {"a", "an", "the"}


def normalize(text: str) -> str:
    """Lower-case, without articles, surrounding punctuation and runs of white space."""
    words = [word.strip(string.punctuation) for word in text.casefold().split()]
    kept = [word for word in words if word and word not in _ARTICLES]
    return " ".join(kept or [word for word in words if word])


def _number(text: str) -> Fraction | None:
    compact = text.strip().replace(" ", "").removeprefix("$").rstrip(".")
    if not any(character.isdigit() for character in compact) or not _NUMBER.match(compact):
        return None
    percent = compact.endswith("%")
    try:
        value = Fraction(compact.rstrip("%").replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if percent else value


def _option(text: str) -> str | None:
    match = _OPTION.match(text.strip())
    return match.group(1).upper() if match else None


def rule_accuracy(answer: str | None, ground_truth: str) -> float:
    """Compare an answer with the reference by rules.

    Equal are: the same text up to case, articles and punctuation; the same number however it is
    written (``1,000`` and ``1000.0``, ``50%`` and ``0.5``, ``1/2`` and ``0.5``); the same option
    letter where the reference is one (``B``, ``(b)``, ``B. red``).

    Args:
        answer: The model's answer; ``None`` or empty is wrong.
        ground_truth: The reference answer, not empty.

    Returns:
        1.0 or 0.0.
    """
    if not answer or not answer.strip():
        return 0.0
    truth = ground_truth.strip()
    if len(truth.strip("().: ")) == 1 and truth.strip("().: ").isalpha():
        return float(_option(answer) == _option(truth.strip("().: ")))
    number = _number(truth)
    if number is not None:
        return float(_number(answer) == number)
    return float(bool(normalize(truth)) and normalize(answer) == normalize(truth))
