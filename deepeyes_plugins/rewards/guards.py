"""Tricks of an answer that a judge might fall for, found by rules.

They see the crude forms. The limit on the answer's length and the judge's own prompt, which marks
the answer as data, are the other two lines of defence.
"""

from __future__ import annotations

import re

from deepeyes_plugins.rewards.accuracy import rule_verdict

_ALTERNATIVES = re.compile(r"\s*(?:,\s*)?\b(?:and/or|or)\b\s*|\s+/\s+|\s*[;|\n]\s*|\s*或(?:者)?\s*")
_JOINED_LETTERS = re.compile(
    r"\A\W*[A-Za-z]\W{0,3}\s*(?:,|/|&|;|\||\bor\b|\band\b)\s*\(?[A-Za-z]\)?(?![A-Za-z'’])",
    re.IGNORECASE,
)
_MARKED_OPTION = re.compile(
    r"(?:\A|[\n,;/|&]|\bor\b|\band\b)\s*\(?(?P<letter>[A-Za-z])[).:](?!\w)", re.IGNORECASE
)
_LETTER = re.compile(r"\W*([A-Za-z])\W*")

_TO_THE_JUDGE = re.compile(
    r"""
    </?(?:think|answer|code|tool_call|tool_response|system|user|assistant)>  # tags of a protocol
    | <\|\w{1,30}\|>                                                # control tokens
    | \\boxed\s*\{\s*(?:yes|true|correct)\s*\}                      # the judge's own verdicts
    | \#\s*equivalence\s+judg | \bjudge?ment\s*: | \bverdict\s*: | \[end\s
    | \b(?:ignore|disregard|forget|override)\b[^\n]{0,60}
      \b(?:instructions?|prompts?|rules?|above|previous|prior|everything|reference|standard)\b
    | \b(?:judge|grader|evaluator|examiner)\b
    | \b(?:mark|score|rate|grade|judge|consider|accept|treat|count)\b[^\n]{0,40}
      \bas\s+(?:being\s+)?(?:correct|right|true|equivalent|yes)\b
    | \b(?:reply|respond|output|print|return|say|write)\b(?:\s+(?:with|only|just))*
      \s+[\"'`]?\\?(?:boxed|yes|true|correct)\b
    | \b(?:equivalent|identical|equal)\s+to\s+the\s+(?:reference|standard|correct|ground)
    | \b(?:the|this)\s+answer\s+(?:is|must\s+be)\s+(?:considered\s+)?(?:correct|right|true)\b
    | \b(?:reference|standard|ground[\s-]truth)\s+(?:answer|is)\b
    | 忽略.{0,20}(?:指令|提示|要求|上述) | 判(?:断|定)?为?正确 | 标准答案 | 参考答案
    """,
    re.IGNORECASE | re.VERBOSE,
)


def lists_alternatives(answer: str, ground_truth: str) -> bool:
    """Return whether ``answer`` bets on several answers, the right one among them.

    That are two option letters where the reference is one (``A or B``, ``A, C``, ``(A) red (B)
    blue`` on lines of their own), and alternatives (``red or blue``, ``7; 8``) of which one is the
    reference and another is not. A reference that lists alternatives itself is left alone.
    """
    truth, answer = ground_truth.strip(), _even(answer)
    if _LETTER.fullmatch(truth):
        marked = {match["letter"].upper() for match in _MARKED_OPTION.finditer(answer)}
        return len(marked) > 1 or bool(_JOINED_LETTERS.match(answer))
    if _ALTERNATIVES.search(truth):
        return False
    bets = [bet for bet in _ALTERNATIVES.split(answer) if bet.strip()]
    right = [rule_verdict(bet, truth) is True for bet in bets]
    return any(right) and not all(right)


def speaks_to_judge(answer: str) -> bool:
    """Return whether ``answer`` holds what is meant for a judge and not for a reader.

    Tags of the protocol, control tokens, verdicts in the judge's own form, and sentences that tell
    a judge what to do or what the reference is.
    """
    return _TO_THE_JUDGE.search(_even(answer)) is not None


def _even(text: str) -> str:
    """Without runs of white space, on which patterns would take quadratic time."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)
