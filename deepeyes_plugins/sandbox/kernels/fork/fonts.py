"""Fallback font for Chinese, Japanese and Korean text in figures.

matplotlib's default font lacks these glyphs and draws boxes. A font that has them is appended to
the fonts that the code chooses, as the last fallback for each glyph. The settings that code can
see, and all other text, do not change.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, Final

from matplotlib import _mathtext, font_manager
from matplotlib.ft2font import FT2Font

logger = logging.getLogger(__name__)

_SAMPLE: Final = "中文標題简体日本語ひらカナ한국어"
# Preferred fonts, best first; others are ranked by coverage.
_KNOWN: Final = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "Arial Unicode MS",
    "Droid Sans Fallback",
)
_FIRST_CJK: Final = "\u2e80"
# Fonts with thousands of characters are larger.
_MIN_BYTES: Final = 1 << 20
_EXTENSIONS: Final = ("ttf", "ttc", "otf")


def use_cjk_font(folders: Sequence[str]) -> str | None:
    """Make matplotlib fall back to a font with Chinese, Japanese and Korean characters.

    The folders are searched, since matplotlib's cached list of fonts may be outdated.

    Args:
        folders: Folders to search recursively for fonts.

    Returns:
        The name of the font, or None if there is none.
    """
    ranked = sorted(filter(None, map(_rank, _large_fonts(folders))))
    if not ranked:
        return None
    *_, path, name = ranked[0]
    manager: Any = font_manager.fontManager
    if not any(entry.fname == path for entry in manager.ttflist):
        manager.addfont(path)
    _fall_back_in_text(manager, path)
    _fall_back_in_formulas(path)
    return name


def _fall_back_in_text(manager: Any, path: str) -> None:
    find = manager._find_fonts_by_props

    def find_with_fallback(*args: Any, **options: Any) -> list[str]:
        found: list[str] = find(*args, **options)
        return found if path in found else [*found, path]

    manager._find_fonts_by_props = find_with_fallback


def _fall_back_in_formulas(path: str) -> None:
    """Add the fallback for text with formulas, which matplotlib renders with a single font."""
    setter: Any = _mathtext.UnicodeFonts
    get_glyph = setter._get_glyph

    def get_glyph_with_fallback(self: Any, name: str, kind: str, symbol: str) -> Any:
        if len(symbol) == 1 and symbol >= _FIRST_CJK:
            font: Any = font_manager.get_font(path)
            missing = not self._get_font("default").get_char_index(ord(symbol))
            if missing and font.get_char_index(ord(symbol)):
                return font, ord(symbol), False
        return get_glyph(self, name, kind, symbol)

    setter._get_glyph = get_glyph_with_fallback


def warn_once_per_cell(shell: Any) -> None:
    """Limit the warning about a missing font to one per cell of an IPython shell."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in seen
        seen.add(message)
        return new

    logging.getLogger(font_manager.__name__).addFilter(is_new)
    shell.events.register("pre_run_cell", lambda info: seen.clear())


def _large_fonts(folders: Sequence[str]) -> list[str]:
    paths = {
        os.path.realpath(path)
        for folder in folders
        for path in font_manager.list_fonts(folder, _EXTENSIONS)
    }
    return [path for path in paths if os.path.isfile(path) and os.path.getsize(path) >= _MIN_BYTES]


def _rank(path: str) -> tuple[int, int, int, str, str] | None:
    """Return coverage, preference, weight, path and name of a font with the characters; or None.

    The best font sorts first.
    """
    try:
        font = FT2Font(path)
        covered = sum(font.get_char_index(ord(character)) > 0 for character in _SAMPLE)
        weight = font_manager.ttfFontProperty(font).weight
    except Exception as error:  # The folder may contain any file.
        logger.debug("font %s cannot be used: %s", path, error)
        return None
    if not covered:
        return None
    name = font.family_name
    known = _KNOWN.index(name) if name in _KNOWN else len(_KNOWN)
    return -covered, known, abs(weight - 400) if isinstance(weight, int) else 0, path, name
