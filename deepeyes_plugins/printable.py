"""Text of models, data, servers and file names, made safe to print."""

from __future__ import annotations

import re

_CONTROLS = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 without tab and line feed, with ESC and CSI.
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # They change the order of what is shown.
    r"\u2028\u2029\ud800-\udfff"  # Line separators, and what no encoding can write.
)
_LINES = re.compile(f"[{_CONTROLS}]")
_LINE = re.compile(rf"[\t\n{_CONTROLS}]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return a text in which control characters are shown, as ``\x1b``, instead of obeyed.

    Terminals obey them: they move the cursor, hide text, set titles or reverse the reading order.

    Args:
        text: Any text.
        lines: Keep line feeds and tabs, for texts of several lines.
    """
    return (_LINES if lines else _LINE).sub(_shown, text)


def printable_json(text: str) -> str:
    """Return a JSON document in which control characters of strings are escaped, as JSON has it."""
    return _LINES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _shown(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
