"""Glyphs for Chinese, Japanese and Korean text in figures.

matplotlib's own font has none of them and draws boxes. Whatever fonts the code asks for, found or
not, one that has them comes last in the search for each glyph. Settings that code can see, and the
looks of all other text, stay as they are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib import _mathtext, font_manager
from matplotlib.ft2font import FT2Font

logger = logging.getLogger(__name__)

_SAMPLE: Final = "中文標題简体日本語ひらカナ한국어"
# Those that look well in all scripts, best first; others are taken by what they cover.
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
# No font with thousands of characters is smaller.
_MIN_BYTES: Final = 1 << 20
_EXTENSIONS: Final = ("ttf", "ttc", "otf")


@dataclass(frozen=True)
class _Candidate:
    path: str
    name: str
    weight: int
    covered: int

    @property
    def rank(self) -> tuple[int, int, int, str]:
        known = _KNOWN.index(self.name) if self.name in _KNOWN else len(_KNOWN)
        return -self.covered, known, abs(self.weight - 400), self.path


def use_cjk_font(folders: Sequence[str]) -> str | None:
    """Make matplotlib fall back to a font with Chinese, Japanese and Korean characters.

    matplotlib's own list of fonts may be older than the font, so the folders are searched.

    Args:
        folders: Where to look for fonts, with all folders below.

    Returns:
        The name of the font, or None where there is none.
    """
    candidates = [found for path in _large_fonts(folders) if (found := _inspect(path))]
    if not candidates:
        return None
    best = min(candidates, key=lambda candidate: candidate.rank)
    manager: Any = font_manager.fontManager
    if not any(entry.fname == best.path for entry in manager.ttflist):
        manager.addfont(best.path)
    _fall_back_in_text(manager, best.path)
    _fall_back_in_formulas(best.path)
    return best.name


def _fall_back_in_text(manager: Any, path: str) -> None:
    find = manager._find_fonts_by_props

    def find_with_fallback(*args: Any, **options: Any) -> list[str]:
        found: list[str] = find(*args, **options)
        return found if path in found else [*found, path]

    manager._find_fonts_by_props = find_with_fallback


def _fall_back_in_formulas(path: str) -> None:
    """The same for text with a formula in it, which matplotlib sets with one font only."""
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
    """Have an IPython shell say once in a cell, not for every text, that a font is not there."""
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


def _inspect(path: str) -> _Candidate | None:
    try:
        font = FT2Font(path)
        covered = sum(font.get_char_index(ord(character)) > 0 for character in _SAMPLE)
        weight = font_manager.ttfFontProperty(font).weight
    except Exception as error:  # Anything may lie in such a folder.
        logger.debug("font %s cannot be used: %s", path, error)
        return None
    if not covered:
        return None
    return _Candidate(path, font.family_name, weight if isinstance(weight, int) else 400, covered)
