"""Escaping of spreadsheet cells: only texts that a spreadsheet would change are encoded.

xlsxwriter writes ``=5`` as a formula and drops long URLs, openpyxl returns a carriage return as
``_x000D_`` and loses every ``x005F_``, and a cell holds 32,767 UTF-16 units. An encoded text starts
with :data:`MARK`; unsafe characters are written as a backslash, ``u`` and four hexadecimal digits.
"""

from __future__ import annotations

import re

MARK = "\N{FIGURE SPACE}"
"""Prefix of an encoded text. White space, so that scorers strip it if they do not decode."""

LONGEST_TEXT = 32_767
"""Maximum length of a cell in UTF-16 units."""

_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\ufffe\uffff]"  # Not in XML, or changed by openpyxl.
    r"|_(?=x[0-9A-Fa-f]{4}_)|x(?=005F_)"  # Read by openpyxl as an escaped character.
    r"|\\(?=u[0-9a-f]{4})"  # Looks like an escape of this module.
)
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})")
_INTERPRETED = (
    *("=", "{=", "<r>", MARK),
    *("http://", "https://", "ftp://", "ftps://", "mailto:", "internal:", "external:", "file://"),
)
"""Prefixes that xlsxwriter interprets as formulas, links or rich text, and :data:`MARK`."""


def encoded(text: str) -> str:
    """Encode a text for a cell; :func:`decoded` is the inverse."""
    cell = _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return MARK + cell if cell != text or text.startswith(_INTERPRETED) else text


def decoded(cell: str) -> str:
    """Decode the text of a cell."""
    if not cell.startswith(MARK):
        return cell
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), cell.removeprefix(MARK))


def truncated_to_cell(text: str) -> str:
    """Return the longest suffix of a text that fits a cell once it is encoded."""
    while (excess := _units(encoded(text)) - LONGEST_TEXT) > 0:
        # One character takes at most six units.
        text = text[max(1, excess // 6) :]
    return text


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
