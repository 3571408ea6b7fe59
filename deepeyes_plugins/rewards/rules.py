"""Rule-based accuracy."""

from __future__ import annotations

import re

from deepeyes_plugins.rewards.values import Number, Percentage, Quantity, read, same

LONGEST_RULE_TRUTH = 60
"""Maximum characters of a reference that rules can compare; longer ones are sentences."""

_OPTION = re.compile(r"\(?([A-Za-z])(?:\)|[.:](?=\s|\Z)|\s*\Z)")
_WHOLE = re.compile(r"[\d/\s]+")
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_ARTICLES = {"a", "an", "the"}
# Only what never changes the meaning: "-5", "C#" and ".5" differ from "5" and "C".
_BEFORE_WORD = "\"'`“‘«"
_AFTER_WORD = "\"'`”’».,;:!?。"
_QUOTED = re.compile(r"[\"'`“](.*)[\"'`”]\.?", re.DOTALL)
_PAIR = re.compile(r"[(\[{].*[,;].*[)\]}]", re.DOTALL)
"""A pair, an interval or a set: its brackets are part of it."""
_CASED = re.compile(r"\d ?(?:[mM](?:Hz|Pa|eV|[WVAJNLgmsbB])?|[kKGT][bB])\b|\\[A-Za-z].*", re.DOTALL)
"""Where capitals tell apart: milli and mega, bits and bytes, LaTeX."""
_BRACKETED_WORD = re.compile(r"[([{]*([^\W\d_][^()\[\]{}]*)[)\]}]*")


def normalize(text: str) -> str:
    """Lower-case; remove articles, sentence punctuation and repeated white space.

    Characters of a number or name stay: the brackets of ``[1,2)``, the ``!`` of ``5!``, the comma
    of ``1, 2`` and the ``A`` of ``Terminal A``.
    """
    is_pair = _PAIR.fullmatch(text.strip()) is not None
    bare = [bare for word in text.split() if (bare := _bare_word(word, is_pair))]
    if bare:
        bare[-1] = bare[-1].rstrip(",;:")
    kept = [word for at, word in enumerate(bare) if not _is_article(word, at, len(bare))]
    return " ".join(kept or bare).casefold()


def _is_article(word: str, at: int, words: int) -> bool:
    """Return whether a word is an article; ``A`` inside or at the end of a text is a name."""
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
    """Parse a number, percentage or quantity, which may end with a full stop."""
    quoted = _QUOTED.fullmatch(text)
    value = read((quoted[1] if quoted else text).removesuffix("."))
    return value if isinstance(value, Number | Percentage | Quantity) else None


def _letter(truth: str) -> str | None:
    """Return the capital letter of a reference that is an option letter."""
    letter = truth.strip("().: ")
    return letter.upper() if len(letter) == 1 and letter.isascii() and letter.isalpha() else None


def _option(text: str) -> str | None:
    match = _OPTION.match(text)
    return match[1].upper() if match else None


def rule_verdict(answer: str | None, ground_truth: str) -> bool | None:
    """Decide by rules whether an answer is correct.

    Equal, in bold type or not: the same text up to case, articles and punctuation; the same number
    in any notation (``1,000`` and ``1000.0``, ``50%`` and ``0.5``, ``1/2`` and ``0.5``); for a
    reference that is an option letter, an answer that starts with it (``B``, ``(b)``, ``B. red``).
    Different: another option letter, another whole number, the same number with another unit.

    Undecided: text with several readings, such as ``5/6`` and ``10/12``, which may be dates or
    scores.

    Args:
        answer: The model's answer; ``None`` or empty is wrong.
        ground_truth: The reference answer, not empty.

    Returns:
        Whether the answer is correct; ``None`` if rules cannot decide.
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
    """Compare texts with slashes, which may be fractions, dates or scores."""
    if [part.split() for part in given.split("/")] == [part.split() for part in truth.split("/")]:
        return True
    amount, other = _amount(truth), _amount(given)
    return None if amount == other or not ("/" in given and "/" in truth) else False


def rule_accuracy(answer: str | None, ground_truth: str) -> float:
    """Compare an answer with the reference by the rules of :func:`rule_verdict` alone.

    Returns:
        1.0 if they are equal, else 0.0.
    """
    return float(rule_verdict(answer, ground_truth) is True)


def rules_can_decide(ground_truth: str) -> bool:
    """Return whether rules are likely to recognize a correct answer to ``ground_truth``.

    They do for an option letter, a number and a short text; a sentence can be paraphrased and
    needs a judge.
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

    Numbers must match in full: ``5.5``, ``5 000``, ``5/6`` and ``5%`` do not begin with ``5``, and
    names too: ``C++`` does not begin with ``C``. ``A red car`` and ``A is wrong`` do not begin with
    the option ``A``.
    """
    truth, given = _plain(ground_truth), _plain(answer or "")
    more = _MORE
    if truth[-1:].isdigit():
        more += f"|{_MORE_OF_NUMBER}"
    elif len(truth) == 1:
        more += f"|{_MORE_OF_LETTER}"
    start = rf"{re.escape(truth)}(?!{more})"
    return bool(given and truth and re.match(start, given, re.IGNORECASE))
