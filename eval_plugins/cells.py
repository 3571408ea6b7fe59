"""An encoding of texts that a spreadsheet would change; all others are written as they are.

xlsxwriter writes ``=5`` as a formula and drops long URLs, openpyxl returns a carriage return as
``_x000D_`` and loses every ``x005F_``, and a cell holds 32,767 UTF-16 units. An encoded text begins
with :data:`MARK`, and a backslash, ``u`` and four hexadecimal digits stand for such characters.
"""

from __future__ import annotations

import re

MARK = "\N{FIGURE SPACE}"
"""Begins an encoded text; white space, which scorers strip where a table is read without us."""

LONGEST_TEXT = 32_767
"""UTF-16 units of a cell."""

_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\ufffe\uffff]"  # Not in XML, or changed by openpyxl.
    r"|_(?=x[0-9A-Fa-f]{4}_)|x(?=005F_)"  # Taken for such a character.
    r"|\\(?=u[0-9a-f]{4})"  # Taken for one of ours.
)
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
_INTERPRETED = (
    *("=", "{=", "<r>", MARK),
    *("http://", "https://", "ftp://", "ftps://", "mailto:", "internal:", "external:", "file://"),
)
"""Beginnings of texts that xlsxwriter takes for formulas, links or formatted text, and ours."""


def encoded(text: str) -> str:
    """The text as a cell can hold it; :func:`decoded` is the inverse."""
    cell = _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return MARK + cell if cell != text or text.startswith(_INTERPRETED) else text


def decoded(cell: str) -> str:
    """The text of a cell."""
    if not cell.startswith(MARK):
        return cell
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), cell.removeprefix(MARK))


def fitting(text: str) -> str:
    """The end of a text, as much as a cell holds once it is encoded."""
    while (excess := _units(encoded(text)) - LONGEST_TEXT) > 0:
        # One character takes at most six units.
        text = text[max(1, excess // 6) :]
    return text


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
