r"""Canonical spelling of LaTeX and plain text: ``\dfrac12`` becomes ``\frac{1}{2}``.

Only the typesetting changes, never the meaning: digits stay apart where blanks part them, an
overline stays, and a unit stays.
"""

from __future__ import annotations

import re
from itertools import accumulate, pairwise

LONGEST = 1_000
"""Maximum characters of an answer that is parsed."""
DEEPEST = 30
"""Maximum nesting of brackets in an answer that is parsed."""
_DEPTHS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}

_CHARACTERS: dict[int, str] = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full width
    **dict.fromkeys(map(ord, "\u3000\u00a0\u2009\u202f"), " "),
    **dict.fromkeys(map(ord, "−–—‐‑－"), "-"),
    **dict.fromkeys(map(ord, "·⋅∙"), r"\cdot "),
    ord("×"): r"\times ",
    ord("÷"): r"\div ",
    ord("±"): r"\pm ",
    ord("≤"): r"\le ",
    ord("≥"): r"\ge ",
    ord("≠"): r"\neq ",
    ord("∞"): r"\infty ",
    ord("π"): r"\pi ",
    ord("θ"): r"\theta ",
    ord("√"): r"\sqrt ",
    ord("∛"): r"\sqrt[3]",
    ord("∪"): r"\cup ",
    ord("∈"): r"\in ",
    ord("…"): r"\ldots ",
    ord("℃"): "°C",
    ord("∶"): ":",
    ord("、"): ", ",
    ord("。"): ".",
}
_VULGAR = {
    "½": "12",
    "⅓": "13",
    "⅔": "23",
    "¼": "14",
    "¾": "34",
    "⅕": "15",
    "⅖": "25",
    "⅗": "35",
    "⅘": "45",
    "⅙": "16",
    "⅚": "56",
    "⅛": "18",
    "⅜": "38",
    "⅝": "58",
    "⅞": "78",
}
_VULGAR_FRACTION = re.compile(f"[{''.join(_VULGAR)}]")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_PLAIN_ROOT = re.compile(r"(?:(?P<cube>∛)|√|(?<![\\\w])sqrt)\s*(?P<number>\d+(?:\.\d+)?)")
"""Of the whole number, as in ``√12``; LaTeX's ``\\sqrt12`` is that of 1."""
_LINED_DIGIT = re.compile("((?:\\d[\u0304\u0305\u0307])+)")
_LINES = str.maketrans("", "", "\u0304\u0305\u0307")

_TILDE = re.compile(r"(?<=\d)\s?~\s?(?=\d)|\A\s*~")
"""Not LaTeX's blank: a range, ``2~3``, or "about"."""

_TOKEN = re.compile(
    r"\\\\(?:\[[^\]\\]{0,9}\])?|\\[A-Za-z]+|\\.|\{,\}|\d+|[A-Za-z]+|\s+|\*\*|.", re.DOTALL
)
_RENAMED = {
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\leq": r"\le",
    r"\leqslant": r"\le",
    r"\geq": r"\ge",
    r"\geqslant": r"\ge",
    r"\ne": r"\neq",
    r"\lt": "<",
    r"\gt": ">",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\vert": "|",
    r"\mid": "|",
    r"\%": "%",
    r"\$": "$",
    r"\#": "#",
    r"\&": "and",
    r"\bar": r"\overline",
    r"\dot": r"\overline",
    r"\dots": r"\ldots",
    r"\cdots": r"\ldots",
    r"\colon": ":",
    r"\degree": "°",
    "**": "^",
    "*": r"\cdot",
    "infinity": r"\infty",
    "inf": r"\infty",
}
_FUNCTIONS = re.compile("sqrt|sin|cos|tan|cot|sec|csc|ln|log|exp|pi|theta")
"""Commands that plain text writes without a backslash."""
_SPACES = {r"\,", r"\;", r"\:", r"\ ", r"\>", r"\quad", r"\qquad", r"\thinspace", "~", "{,}"}
"""``{,}`` groups digits like a space."""
_DROPPED = {
    *(r"\left", r"\right", r"\displaystyle", r"\textstyle", r"\limits", r"\!"),
    *(f"\\{size}{side}" for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "r")),
}
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf)?|math(?:rm|bf|it|sf)|mbox|hbox|operatorname|f?boxed)"
)
_ARGUMENTS = {r"\frac": 2, r"\binom": 2, "^": 1, "_": 1} | dict.fromkeys(
    (r"\sqrt", r"\overline", r"\vec", r"\hat", r"\begin", r"\end"), 1
)


class _Unreadable(Exception):
    """Unbalanced braces or missing arguments."""


def canonical(text: str) -> str | None:
    r"""Return ``text`` in canonical spelling.

    Every argument has its braces, numbers and words keep one blank between each other, commands are
    written out (``sqrt(2)`` and ``√2`` as ``\sqrt{2}``), signs are ASCII.

    Returns:
        ``None`` for what cannot be read: braces that do not match, more than ``LONGEST``
        characters or ``DEEPEST`` brackets.
    """
    if len(text) > LONGEST:
        return None
    text = _LINED_DIGIT.sub(lambda run: rf"\overline{{{run[1].translate(_LINES)}}}", text)
    text = _VULGAR_FRACTION.sub(
        lambda found: r" \frac{{{}}}{{{}}}".format(*_VULGAR[found[0]]), text
    )
    text = _SUPERSCRIPT.sub(lambda run: f"^{{{run[0].translate(_LOWERED)}}}", text)
    text = _PLAIN_ROOT.sub(
        lambda root: rf"\sqrt{'[3]' if root['cube'] else ''}{{{root['number']}}}", text
    )
    text = text.translate(_CHARACTERS)
    tokens = _TOKEN.findall(_TILDE.sub(r"\\sim ", text))
    if tokens.count("$") % 2 == 0:  # What stands around mathematics; a single one is a currency.
        tokens = [token for token in tokens if token != "$"]
    try:
        spelled = _joined(_Reader(tokens).until(None))
    except _Unreadable:
        return None
    depths = accumulate(_DEPTHS.get(character, 0) for character in spelled)
    return spelled if max(depths, default=0) <= DEEPEST else None


class _Reader:
    """Reads tokens as TeX does."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens[::-1]
        self._depth = 0

    def until(self, closing: str | None) -> list[str]:
        """Read to ``closing``, which is not part of what is returned, or to the end."""
        pieces: list[str] = []
        while self._tokens:
            token = self._tokens.pop()
            if token == closing:
                return pieces
            pieces += self._read(token)
        if closing is not None:
            raise _Unreadable
        return pieces

    def _read(self, token: str) -> list[str]:
        self._depth += 1
        if self._depth > DEEPEST:
            raise _Unreadable
        pieces = self._pieces(token)
        self._depth -= 1
        return pieces

    def _pieces(self, token: str) -> list[str]:
        token = f"\\{token}" if _FUNCTIONS.fullmatch(token) else _RENAMED.get(token, token)
        if token == "{":
            inner = self.until("}")
            return inner if len(inner) < 2 else ["{", *inner, "}"]
        if token == "}":
            raise _Unreadable
        if token in _DROPPED:
            return []
        if token in _SPACES or token.isspace():
            return [" "]
        if _WRAPPER.fullmatch(token):
            return [" ", *self._argument(), " "]
        if token not in _ARGUMENTS:
            return [token]
        pieces = [token]
        if token == r"\sqrt" and self._next() == "[":
            self._tokens.pop()
            pieces += ["[", *self.until("]"), "]"]
        for _ in range(_ARGUMENTS[token]):
            argument = self._argument(whole=token in "^_")
            if token == "^" and argument == [r"\circ"]:
                return ["°"]
            pieces += ["{", *argument, "}"]
        if pieces == [r"\begin", "{", "array", "}"]:
            self._argument()  # The columns' alignment.
        return pieces

    def _next(self) -> str | None:
        while self._tokens and self._tokens[-1].isspace():
            self._tokens.pop()
        return self._tokens[-1] if self._tokens else None

    def _argument(self, *, whole: bool = False) -> list[str]:
        r"""A group, or one token: a digit or a letter, as in ``\frac12``.

        Of an exponent the ``whole`` number, as in ``2^10``.
        """
        token = self._next()
        if token is None:
            raise _Unreadable
        self._tokens.pop()
        if token == "{":
            return self.until("}")
        if token == "(" and not whole:
            return self.until(")")
        if whole and token in "+-" and (self._next() or "").isalnum():
            return [token, *self._argument(whole=True)]
        if token.isalnum() and token.isascii() and not (whole and token.isdigit()):
            if token[1:]:
                self._tokens.append(token[1:])
            return [token[0]]
        return self._read(token)


def _joined(pieces: list[str]) -> str:
    """Join, with spaces only between numbers, words or items of a list."""
    marked: list[str] = []
    spaced = False
    for piece in pieces:
        if piece == " ":
            spaced = True
            continue
        if marked and _is_parted(marked[-1], piece, spaced):
            marked.append(" ")
        marked.append(piece)
        spaced = False
    return "".join(marked)


def _is_parted(before: str, after: str, spaced: bool) -> bool:
    if before[0] == "\\" and before[-1].isalpha():
        return after[0].isalpha()
    return spaced and (before == "," or (before[-1].isalnum() and after[0].isalnum()))


def parts(text: str, separators: re.Pattern[str]) -> list[str]:
    """Split a canonical text at ``separators`` outside of brackets."""
    cuts = [0]
    depth = 0
    at = 0
    while at < len(text):
        if depth == 0 and at and (found := separators.match(text, at)):
            cuts += [found.start(), found.end()]
            at = found.end()
            continue
        depth += _DEPTHS.get(text[at], 0)
        at += 1
    cuts.append(len(text))
    return [text[start:end].strip() for start, end in list(pairwise(cuts))[::2]]


def enclosed(text: str) -> tuple[str, str, str] | None:
    r"""Return opening bracket, inside and closing bracket if one pair encloses ``text``."""
    opening = text[:2] if text.startswith(r"\{") else text[:1]
    if opening not in ("(", "[", r"\{", "{"):
        return None
    depth = 0
    for at, character in enumerate(text):
        depth += _DEPTHS.get(character, 0)
        if depth == 0 and at >= len(opening):
            if at + 1 < len(text):
                return None
            closing = text[-2:] if text.endswith(r"\}") else text[-1:]
            return opening, text[len(opening) : -len(closing)].strip(), closing
    return None
