"""Worker process that runs math-verify.

``python -m deepeyes_plugins.rewards.algebra_worker``: one JSON line ``[reference, answer]`` in, one
JSON line ``true``, ``false`` or ``null`` (undecided) out. It ends when its input does.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from typing import Any

from deepeyes_plugins.rewards.mathematics import mathematics_verdict

SOFT_SECONDS = 2
"""math-verify's limit per step; only the parent process can interrupt C code."""
MEMORY_BYTES = 4 << 30


EXACT_DIGITS = 12
"""Decimals that must agree; with math-verify's default of 6, 0.333333 equals a third."""


def compare(reference: str, answer: str) -> bool | None:
    """Return whether both are equal, comparing expressions with math-verify."""
    return mathematics_verdict(answer, reference, equal)


def equal(a: str, b: str) -> bool | None:
    """Return whether math-verify finds two expressions equal; ``None`` if it cannot parse one."""
    from math_verify import parse, verify

    first, second = (_expressions(parse, text) for text in (a, b))
    if not first or not second:
        return None
    return bool(verify(first, second, float_rounding=EXACT_DIGITS, timeout_seconds=SOFT_SECONDS))


def _expressions(parse: Any, text: str) -> list[Any]:
    """Parse a text; return only results that are expressions, not strings."""
    found = parse(f"${text}$", parsing_timeout=SOFT_SECONDS)
    return [expression for expression in found if not isinstance(expression, str)]


def main() -> None:
    """Compare pairs until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable()
    for line in sys.stdin:
        try:
            verdict = compare(*json.loads(line))
        except (Exception, MemoryError):
            verdict = None
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
