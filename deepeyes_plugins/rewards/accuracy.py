"""Rule-based accuracy: what can be decided without a judge."""

from __future__ import annotations

import re
from fractions import Fraction

_OPTION = re.compile(r"\(?([A-Za-z])(?:[).:]|\s*\Z)")
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s?\$?\s?"
    r"(?P<value>(?:\d{1,3}(?:[, ]\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?)"
    r"\s?(?P<percent>%?)"
)
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_ARTICLES = {"a", "an", "the"}
# Only what never changes the meaning: "-5", "C#" and ".5" are other words than "5" and "C".
_BEFORE_WORD = "\"'`([{“‘«"
_AFTER_WORD = "\"'`)]}”’».,;:!?…。"


def normalize(text: str) -> str:
    """Lower-case, without articles, the punctuation of sentences and runs of white space."""
    words = text.casefold().split()
    bare = [word.lstrip(_BEFORE_WORD).rstrip(_AFTER_WORD) for word in words]
    kept = [word for word in bare if word and word not in _ARTICLES]
    return " ".join(kept or filter(None, bare))


def _plain(text: str) -> str:
    return _BOLD.sub(r"\1", text).strip() or text.strip()


def _number(text: str) -> Fraction | None:
    compact = text.replace("−", "-").removeprefix("$").strip().rstrip(".")
    match = _NUMBER.fullmatch(compact)
    if match is None:
        return None
    try:
        value = Fraction(match["sign"] + match["value"].replace(",", "").replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if match["percent"] else value


def _option(text: str) -> str | None:
    match = _OPTION.match(text)
    return match[1].upper() if match else None


def rule_accuracy(answer: str | None, ground_truth: str) -> float:
    """Compare an answer with the reference by rules.

    Equal are, in bold type or not: the same text up to case, articles and punctuation; the same
    number however it is written (``1,000`` and ``1000.0``, ``50%`` and ``0.5``, ``1/2`` and
    ``0.5``); where the reference is an option letter, an answer that starts with it (``B``,
    ``(b)``, ``B. red``).

    Args:
        answer: The model's answer; ``None`` or empty is wrong.
        ground_truth: The reference answer, not empty.

    Returns:
        1.0 or 0.0.
    """
    given, truth = _plain(answer or ""), _plain(ground_truth)
    if not given:
        return 0.0
    if given.casefold() == truth.casefold():
        return 1.0
    letter = truth.strip("().: ")
    if len(letter) == 1 and letter.isascii() and letter.isalpha():
        return float(_option(given) == letter.upper())
    number = _number(truth)
    if number is not None:
        return float(_number(given) == number)
    return float(bool(normalize(truth)) and normalize(given) == normalize(truth))


def starts_with_truth(answer: str | None, ground_truth: str) -> bool:
    """Return whether ``answer`` begins with the words of ``ground_truth``, whatever their case."""
    truth = re.escape(_plain(ground_truth))
    given = _plain(answer or "")
    return bool(given and truth and re.match(rf"{truth}(?!\w)", given, re.IGNORECASE))
