r"""Strict parser of judges' verdicts.

Formats (Visual-Agent/DeepEyesV2): ``\boxed{Yes}`` or ``\boxed{No}`` for answers; TRUE or FALSE
under the heading ``## Equivalence Judgement`` for mathematics.
"""

from __future__ import annotations

import re

from deepeyes_plugins.judge.contracts import PromptName

_OPENING, _CLOSING = "<think>", "</think>"
_BOX = re.compile(
    r"\\boxed\s*+\{\s*+(?:\\(?:text|textbf|mathrm|mathbf)\s*+\{)?[\s*_`\"']*+(yes|no)[\s*_`\"'.!]*+\}",
    re.IGNORECASE | re.ASCII,
)
_HEADING = re.compile(r"equivalence\s+judge?ment", re.IGNORECASE | re.ASCII)
_WORD = re.compile(
    r"[\s*_`\"':#\-\[(]*+(?:\\boxed\s*+\{)?[\s*_`\"']*+(true|false)\b", re.IGNORECASE | re.ASCII
)
_OTHER_WORD = re.compile(r"\b(?:true|false)\b", re.IGNORECASE | re.ASCII)


def read_verdict(prompt: PromptName, text: str) -> bool | None:
    """Return the judge's decision; ``None`` if the reply has no clear verdict.

    Thinking is ignored, and a reply with unclosed thinking has no verdict. Several verdicts must
    agree.

    Args:
        prompt: Prompt of the request, which determines the format.
        text: The judge's complete reply.
    """
    reply = text.rpartition(_CLOSING)[2]
    if _OPENING in reply:
        return None
    return _boxed(reply) if prompt == "answer" else _under_heading(reply)


def _boxed(text: str) -> bool | None:
    return _unanimous([match[1].casefold() == "yes" for match in _BOX.finditer(text)])


def _under_heading(text: str) -> bool | None:
    sections = _HEADING.split(text)[1:]
    verdicts: list[bool] = []
    for section in sections:
        match = _WORD.match(section)
        if match is None or _contradicts(section[match.end() :], match[1]):
            return None
        verdicts.append(match[1].casefold() == "true")
    return _unanimous(verdicts)


def _contradicts(rest: str, word: str) -> bool:
    """Return whether the other word follows, as in "TRUE or FALSE"."""
    found = {match[0].casefold() for match in _OTHER_WORD.finditer(rest)}
    return bool(found - {word.casefold()})


def _unanimous(verdicts: list[bool]) -> bool | None:
    return verdicts[0] if verdicts and len(set(verdicts)) == 1 else None
