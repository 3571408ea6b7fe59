"""Tokenisation for the local index, in any language, without a dictionary.

Text is normalised first: compatibility characters (full-width letters, ligatures) become plain
ones, case is folded, and accents of Latin letters are removed. Then

* a run of letters, digits and combining marks is a term, in languages with spaces between words;
* Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese text is split into overlapping bigrams of
  characters, which needs no model or word list and gives the same terms in every version. Single
  characters are indexed too, for queries of one character; longer runs are looked up by bigrams.

All other characters (punctuation, operators, emoji, control characters) only separate terms, so
that queries have no syntax.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

LONGEST_TERM = 64
"""Maximum length of a term; longer ones (base64, URLs without punctuation) are truncated."""

_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Burmese
    "\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff"  # Hangul
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3021-\u302f\u3041-\u3096\u3099\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u31f0-\u31ff"  # Kana
    "\u3100-\u312f\u31a0-\u31bf"  # Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_OTHER_SCRIPTS = "\U00010000-\U0001efff"
"""Historic and minority scripts; the symbols behind them are emoji."""
_ASCII_RUN = re.compile("[a-z0-9]+")
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_ACCENTS_LEFT = re.compile("(?<=[a-z])[\u0300-\u036f]+")


def document_terms(text: str) -> list[str]:
    """Return the terms of a passage, in order and with repetitions."""
    return _terms(text, singles=True)


def query_terms(text: str) -> list[str]:
    """Return the terms of a query, in order."""
    return _terms(text, singles=False)


def _terms(text: str, *, singles: bool) -> list[str]:
    if text.isascii():
        found = _ASCII_RUN.findall(text.lower())
    else:
        found = []
        for run in _runs().findall(_folded(text)):
            if _UNSPACED_CHARACTER.match(run):
                if singles or len(run) == 1:
                    found.extend(run)
                found.extend(run[at : at + 2] for at in range(len(run) - 1))
            else:
                found.append(run)
    return [term[:LONGEST_TERM] for term in found]


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding may denormalise: a Greek iota subscript, a dotted capital I.
    plain = unicodedata.normalize("NFKC", folded).translate(_accents())
    return _ACCENTS_LEFT.sub("", plain)


@cache
def _accents() -> dict[int, str]:
    """Map Latin letters with accents to the letters without."""
    table = {}
    for code in (*range(0xC0, 0x250), *range(0x1E00, 0x1F00)):
        letters = unicodedata.normalize("NFD", chr(code))
        if len(letters) > 1 and letters[0].isascii():
            table[code] = letters[0]
    return table


@cache
def _runs() -> re.Pattern[str]:
    """Match runs of unspaced characters, or of letters, digits and marks of other scripts."""
    # Not `\w`: it lacks the combining marks, without which Hindi or Tamil words are split, and a
    # class of plain ranges is several times as fast as `\w` with exceptions.
    first: dict[str, list[str]] = {"L": [], "N": [], "M": []}
    for code in range(0x10000):
        character = chr(code)
        kind = unicodedata.category(character)[0]
        if kind in first and not _UNSPACED_CHARACTER.match(character):
            first[kind].append(character)
    starts = "".join(first["L"] + first["N"])
    marks = "".join(mark for mark in first["M"] if not "\ufe00" <= mark <= "\ufe0f")
    return re.compile(
        f"[{_UNSPACED}]+|[{_OTHER_SCRIPTS}{starts}][{_OTHER_SCRIPTS}{starts}{marks}]*"
    )
