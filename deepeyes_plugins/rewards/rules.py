"""Rule-based accuracy: what can be decided without a judge."""

from __future__ import annotations

import re

from deepeyes_plugins.rewards.values import Number, Percentage, Quantity, read, same

LONGEST_RULE_TRUTH = 60
"""Characters; a longer reference is a sentence that rules cannot compare. Our own bound."""

_OPTION = re.compile(r"\(?([A-Za-z])(?:\)|[.:](?=\s|\Z)|\s*\Z)")
_WHOLE = re.compile(r"[\d/\s]+")
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_ARTICLES = {"a", "an", "the"}
# Only what never changes the meaning: "-5", "C#" and ".5" are other words than "5" and "C".
_BEFORE_WORD = "\"'`“‘«"
_AFTER_WORD = "\"'`”’».,;:!?。"
_QUOTED = re.compile(r"[\"'`“](.*)[\"'`”]\.?", re.DOTALL)
_PAIR = re.compile(r"[(\[{].*[,;].*[)\]}]", re.DOTALL)
"""A pair, an interval or a set: its brackets are part of it."""
_CASED = re.compile(r"\d ?(?:[mM](?:Hz|Pa|eV|[WVAJNLgmsbB])?|[kKGT][bB])\b|\\[A-Za-z].*", re.DOTALL)
"""Where capitals tell apart: milli and mega, bits and bytes, LaTeX."""
_BRACKETED_WORD = re.compile(r"[([{]*([^\W\d_][^()\[\]{}]*)[)\]}]*")


def normalize(text: str) -> str:
    """Lower-case, without articles, the punctuation of sentences and runs of white space.

    What belongs to a number or a name stays: the brackets of ``[1,2)``, the ``!`` of ``5!``, the
    comma of ``1, 2`` and the ``A`` of ``Terminal A``.
    """
    is_pair = _PAIR.fullmatch(text.strip()) is not None
    bare = [bare for word in text.split() if (bare := _bare_word(word, is_pair))]
    if bare:
        bare[-1] = bare[-1].rstrip(",;:")
    kept = [word for at, word in enumerate(bare) if not _is_article(word, at, len(bare))]
    return " ".join(kept or bare).casefold()


def _is_article(word: str, at: int, words: int) -> bool:
    """A capital A inside a text, or any at its end, is a name: ``Terminal A``."""
    return word.casefold() in _ARTICLES and at + 1 < words and (at == 0 or word != "A")


def _bare_word(word: str, is_bracketed: bool) -> str:
    bare = word.lstrip(_BEFORE_WORD).rstrip(_AFTER_WORD)
    if len(bare) == 1 or any(map(str.isdigit, bare)):
        after = word[word.index(bare) + len(bare) :]
        return bare + (after[0] if after[:1] in set("!,;:'\"") else "")
    bracketed = None if is_bracketed else _BRACKETED_WORD.fullmatch(bare)
    return bracketed[1].rstrip(_AFTER_WORD) if bracketed else bare


def _plain(text: str) -> str:
    return _BOLD.sub(r"\1", text).strip() or text.strip()


def _amount(text: str) -> Number | Percentage | Quantity | None:
    """Read a number, percentage or quantity; its words may end a sentence."""
    quoted = _QUOTED.fullmatch(text)
    value = read((quoted[1] if quoted else text).removesuffix("."))
    return value if isinstance(value, Number | Percentage | Quantity) else None


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
    ``(b)``, ``B. red``). Surely different are another option letter, another whole number, and
    the same number of another unit.

    Undecided is what may be more than a number: ``5/6`` and ``10/12`` may be dates or scores.

    Args:
        answer: The model's answer; ``None`` or empty is wrong.
        ground_truth: The reference answer, not empty.

    Returns:
        ``None`` where it takes understanding.
    """
    given, truth = _plain(answer or ""), _plain(ground_truth)
    if not given:
        return False
    is_cased = _CASED.findall(given) != _CASED.findall(truth)
    if given.casefold() == truth.casefold():
        return None if is_cased else True
    letter = _letter(truth)
    if letter is not None:
        option = _option(given)
        return None if option is None else option == letter
    amount, other = _amount(truth), _amount(given)
    if amount is not None and other is not None:
        if "/" in given + truth and _WHOLE.fullmatch(given) and _WHOLE.fullmatch(truth):
            return _same_slashed(given, truth)
        return same(amount, other, lambda _a, _b: None)
    if amount is None and other is None and normalize(given) == normalize(truth) != "":
        return None if is_cased else True
    return None


def _same_slashed(given: str, truth: str) -> bool | None:
    """A fraction, a date or a score: 5/6 is no 10/12, but may be what 5 is meant for."""
    if [part.split() for part in given.split("/")] == [part.split() for part in truth.split("/")]:
        return True
    amount, other = _amount(truth), _amount(given)
    return None if amount == other or not ("/" in given and "/" in truth) else False


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
    if _letter(truth) is not None or _amount(truth) is not None:
        return True
    return len(truth) <= LONGEST_RULE_TRUTH


_MORE = r"\w|[+#^]|-\Z|(?<=\d \w)/|(?<=\d \w\w)/"
_MORE_OF_NUMBER = (
    r"!|[.,:/-]\d|\s?[%‰万亿]|\s\d"
    r"|\s(?:or (?:more|less|fewer)|thousand|million|billion|trillion|dozen|hundred|percent)\b"
)
_MORE_OF_LETTER = r"(?<=[AaIi])\s+\w|\s+(?:is|was|are|isn|cannot|can|would|and|or)\b"
"""What makes another word, unit or number of one that it follows, or no option of a letter."""


def starts_with_truth(answer: str | None, ground_truth: str) -> bool:
    """Return whether ``answer`` begins with the words of ``ground_truth``, whatever their case.

    A number does not begin with another one: ``5.5``, ``5 000``, ``5/6`` and ``5%`` not with ``5``,
    nor a name with a part of it: ``C++`` not with ``C``. ``A red car`` and ``A is wrong`` do not
    begin with the option ``A``.
    """
    truth, given = _plain(ground_truth), _plain(answer or "")
    more = _MORE
    if truth[-1:].isdigit():
        more += f"|{_MORE_OF_NUMBER}"
    elif len(truth) == 1:
        more += f"|{_MORE_OF_LETTER}"
    start = rf"{re.escape(truth)}(?!{more})"
    return bool(given and truth and re.match(start, given, re.IGNORECASE))
