"""Cuts text into the terms that the local index knows, in any language, without a dictionary.

Text is brought into one form first: compatibility characters (full-width letters, ligatures) become
plain ones, case is folded, and Latin letters lose their accents. Then

* runs of letters, digits and combining marks are terms, which serves every language that puts
  spaces between words;
* Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese text is cut into overlapping pairs of
  characters, the customary way without a dictionary: it needs no model and no word list, finds
  words that no list has, and gives the same terms forever. Single characters are indexed as well,
  so that a query of one character finds something; a longer run is looked up by its pairs only.

Everything else (punctuation, operators, emoji, control characters) separates terms and has no
meaning, so no query has a syntax that could be wrong.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

LONGEST_TERM = 64
"""Characters of a term that count; what follows (base64, URLs without punctuation) is cut off."""

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
    """The terms of a passage, in order and as often as they occur."""
    return _terms(text, singles=True)


def query_terms(text: str) -> list[str]:
    """The terms of a query, in order."""
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
    # Folding may undo the form: a Greek iota below a letter, a dotted capital I.
    plain = unicodedata.normalize("NFKC", folded).translate(_accents())
    return _ACCENTS_LEFT.sub("", plain)


@cache
def _accents() -> dict[int, str]:
    """Latin letters with accents, to the letters without."""
    table = {}
    for code in (*range(0xC0, 0x250), *range(0x1E00, 0x1F00)):
        letters = unicodedata.normalize("NFD", chr(code))
        if len(letters) > 1 and letters[0].isascii():
            table[code] = letters[0]
    return table


@cache
def _runs() -> re.Pattern[str]:
    """Runs of one kind: unspaced characters, or letters, digits and marks of other scripts."""
    # Not `\w`: it lacks the combining marks, without which Hindi or Tamil words fall apart, and a
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
