"""Judges for tests: what a model would say to a comparison."""

from __future__ import annotations

import re

from tests.openai.server import Body, Reply

YES, NO = r"<think>hm</think>\boxed{Yes}", r"<think>hm</think>\boxed{No}"
TRUE, FALSE = "Same.\n\n## Equivalence Judgement\nTRUE", "No.\n\n## Equivalence Judgement\nFALSE"

_BLOCK = r"<{name} (\w+)>\n(.*)\n</{name} \1>"
_EQUAL = {("3/4", "0.75"), ("red", "The car is red.")}


def block(body: Body, name: str) -> str:
    """The question, reference or answer of a request."""
    match = re.search(_BLOCK.format(name=name), body["messages"][-1]["content"], re.DOTALL)
    assert match is not None, f"no {name} in {body}"
    return match[2]


def is_right(body: Body) -> bool:
    reference, answer = block(body, "reference"), block(body, "answer")
    return reference == answer or (reference, answer) in _EQUAL


def honest(body: Body) -> Reply:
    """A good judge, of both kinds."""
    right = is_right(body)
    if "Equivalence Judgement" in body["messages"][0]["content"]:
        return Reply(TRUE if right else FALSE)
    return Reply(YES if right else NO)
