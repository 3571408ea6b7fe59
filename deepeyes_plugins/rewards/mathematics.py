"""Mathematical answers: the same value, however it is typeset."""

from __future__ import annotations

import re

from deepeyes_plugins.rewards.accuracy import rule_verdict

_BOXED = ("\\boxed{", "\\fbox{")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_ASSIGNMENT = re.compile(r"[A-Za-z](?:_?\{?\w\}?)?\s*=\s*(?=[^=])")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|rm|overline)\s*\{([^{}]*)\}")
_INVISIBLE = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;: ]|[~$]|\{,\}")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)")
_SHORT_ROOT = re.compile(r"\\sqrt\s*(\w)")
_PLAIN_FRACTION = re.compile(r"\\frac\{(-?\d+)\}\{(\d+)\}")
_DEGREES = re.compile(r"\^\{?\\circ\}?|°|\bdegrees?\b")
# Units and nouns that a quantity keeps its value without; those of Minerva's and Lewkowycz et
# al.'s (2022) normalisation for MATH, which the published reward uses.
_UNITS = re.compile(
    r"(?<=[\d}])\s*(?:square|cubic)?\s*(?:ways|integers|dollars|mph|inches|hours|km|units|points"
    r"|feet|minutes|digits|cents|cm|gm|pounds|meters|meals|edges|students|multiples)\b"
)


def boxed(text: str) -> list[str]:
    r"""Return what stands in each complete ``\boxed{…}``, braces inside counted; linear in time."""
    found = []
    position = 0
    while (start := text.find(_BOXED[0], position)) >= 0:
        start += len(_BOXED[0])
        depth = 1
        end = start
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        found.append(text[start : end - 1])
        position = end
    return found


def bare_mathematics(answer: str) -> str:
    r"""Take off what only wraps an answer: ``\boxed{}``, ``$``, ``x =`` and a final full stop."""
    text = answer.strip()
    while True:
        before = text
        text = text.removesuffix(".").strip() if not text.endswith("..") else text
        for opening, closing in (*_DELIMITERS, *((box, "}") for box in _BOXED)):
            inner = text.removeprefix(opening).removesuffix(closing)
            if len(text) - len(inner) == len(opening) + len(closing) and opening not in inner:
                text = inner.strip()
        match = _ASSIGNMENT.match(text)
        if match and text.count("=") == 1:
            text = text[match.end() :].strip()
        if text == before:
            return text or answer.strip()


def normalize_mathematics(answer: str) -> str:
    """Return a form in which two typesettings of one answer are equal, as usual for MATH."""
    text = bare_mathematics(answer)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = _WRAPPED.sub(r"\1", text)
    text = _DEGREES.sub("", text)
    text = _UNITS.sub("", text)
    text = text.replace(r"\%", "%").replace(r"\$", "")
    text = _INVISIBLE.sub("", text)
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = _PLAIN_FRACTION.sub(r"\1/\2", text)
    return " ".join(text.split())


def mathematics_verdict(answer: str, ground_truth: str) -> bool | None:
    """Decide by rules where they are sure: those of words and numbers, after normalisation.

    Returns:
        ``None`` where it takes understanding or computer algebra.
    """
    given, truth = normalize_mathematics(answer), normalize_mathematics(ground_truth)
    if given and given.replace(" ", "") == truth.replace(" ", ""):
        return True
    if rule_verdict(given, truth) is True:
        return True
    # Numbers whose units were taken off may differ and still be the same quantity.
    different = rule_verdict(bare_mathematics(answer), bare_mathematics(ground_truth)) is False
    return False if different else None


_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "max", "min"}
LONGEST_EXPRESSION = 200
"""Characters that are worth computer algebra. Ours."""


def is_expression(text: str) -> bool:
    """Return whether ``text`` is an expression and no prose.

    Computer algebra reads a word as a product of letters, and products commute: to it ``dog`` is
    ``god``.
    """
    words = _WORD.findall(text)
    return 0 < len(text) <= LONGEST_EXPRESSION and all(word in _FUNCTIONS for word in words)
