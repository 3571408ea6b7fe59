"""The program that runs math-verify, apart from everything that must not wait for it.

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
"""math-verify's own limit for each of its steps; it cannot interrupt C code, its parent can."""
MEMORY_BYTES = 4 << 30


EXACT_DIGITS = 12
"""Decimals that must agree; with math-verify's own 6, 0.333333 is a third."""


def compare(reference: str, answer: str) -> bool | None:
    """Return whether both are equal, their expressions as math-verify finds them."""
    return mathematics_verdict(answer, reference, equal)


def equal(a: str, b: str) -> bool | None:
    """Return whether math-verify finds two expressions equal; ``None`` if it cannot read one."""
    from math_verify import parse, verify

    first, second = (_expressions(parse, text) for text in (a, b))
    if not first or not second:
        return None
    return bool(verify(first, second, float_rounding=EXACT_DIGITS, timeout_seconds=SOFT_SECONDS))


def _expressions(parse: Any, text: str) -> list[Any]:
    """What was understood as an expression; what stayed a text is left out."""
    found = parse(f"${text}$", parsing_timeout=SOFT_SECONDS)
    return [expression for expression in found if not isinstance(expression, str)]


def main() -> None:
    """Answer until the input ends."""
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
