"""Rule-based accuracy: what can be decided without a judge."""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST_RULE_TRUTH = 60
"""Characters; a longer reference is a sentence that rules cannot compare. Our own bound."""

_OPTION = re.compile(r"\(?([A-Za-z])(?:[).:]|\s*\Z)")
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s?\$?\s?"
    r"(?P<value>(?:\d{1,3}(?:[, ]\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?)"
    r"\s?(?P<percent>%?)"
)
_WHOLE = re.compile(r"[-+]?\d+")
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


def _letter(truth: str) -> str | None:
    """Return the option letter that a reference consists of, as a capital."""
    letter = truth.strip("().: ")
    return letter.upper() if len(letter) == 1 and letter.isascii() and letter.isalpha() else None


def _option(text: str) -> str | None:
    match = _OPTION.match(text)
    return match[1].upper() if match else None


def rule_verdict(answer: str | None, ground_truth: str) -> bool | None:
    """Decide by rules where they are sure.

    Equal are, in bold type or not: the same text up to case, articles and punctuation; the same
    number however it is written (``1,000`` and ``1000.0``, ``50%`` and ``0.5``, ``1/2`` and
    ``0.5``); where the reference is an option letter, an answer that starts with it (``B``,
    ``(b)``, ``B. red``). Surely different are another option letter, and another whole number.

    Args:
        answer: The model's answer; ``None`` or empty is wrong.
        ground_truth: The reference answer, not empty.

    Returns:
        ``None`` where it takes understanding.
    """
    given, truth = _plain(answer or ""), _plain(ground_truth)
    if not given:
        return False
    if given.casefold() == truth.casefold():
        return True
    letter = _letter(truth)
    if letter is not None:
        option = _option(given)
        return None if option is None else option == letter
    number, other = _number(truth), _number(given)
    if number is not None and other is not None:
        if number == other:
            return True
        return False if _WHOLE.fullmatch(truth) and _WHOLE.fullmatch(given) else None
    if number is None and normalize(truth) and normalize(given) == normalize(truth):
        return True
    return None


def rule_accuracy(answer: str | None, ground_truth: str) -> float:
    """Compare an answer with the reference by the rules of :func:`rule_verdict` alone.

    Returns:
        1.0 where they find it equal, else 0.0.
    """
    return float(rule_verdict(answer, ground_truth) is True)


def rules_can_decide(ground_truth: str) -> bool:
    """Return whether a right answer to ``ground_truth`` is likely to be found right by rules.

    So it is for an option letter, a number and a short text; a sentence can be said in other
    words, which only a judge sees.
    """
    truth = _plain(ground_truth)
    if _letter(truth) is not None or _number(truth) is not None:
        return True
    return len(truth) <= LONGEST_RULE_TRUTH


def starts_with_truth(answer: str | None, ground_truth: str) -> bool:
    """Return whether ``answer`` begins with the words of ``ground_truth``, whatever their case."""
    truth = re.escape(_plain(ground_truth))
    given = _plain(answer or "")
    return bool(given and truth and re.match(rf"{truth}(?!\w)", given, re.IGNORECASE))
