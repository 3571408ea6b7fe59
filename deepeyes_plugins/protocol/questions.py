"""Extraction of the plain question from a prompt, for judges."""

from __future__ import annotations

import re

_TAGS = "think|code|tool_call|answer"
_PLACEHOLDER = re.compile(r"<(?:image|video|audio)>|<\|[A-Za-z0-9_]+\|>")
_TAGGED_LINE = re.compile(rf"^.*</?(?:{_TAGS})>.*$", re.MULTILINE)
_LABEL = re.compile(r"\A\s*(?:question|q)\s*[::]\s*", re.IGNORECASE)


def plain_question(text: str) -> str:
    """Return a user message without placeholders and without instructions on the wire format.

    The instructions are the lines that name a tag of the protocol (``<think>``, ``<answer>``, …),
    as the published prompts end with. Where nothing else is said, the text stays as it is.
    """
    text = _PLACEHOLDER.sub("", text)
    question = _LABEL.sub("", _TAGGED_LINE.sub("", text))
    return _tidy(question) or _tidy(text)


def _tidy(text: str) -> str:
    lines = (line.rstrip() for line in text.strip().splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
