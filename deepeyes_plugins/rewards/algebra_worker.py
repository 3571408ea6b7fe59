"""The program that runs math-verify, apart from everything that must not wait for it.

``python -m deepeyes_plugins.rewards.algebra_worker``: one JSON line ``[reference, answer]`` in, one
JSON line ``true``, ``false`` or ``null`` (not understood) out. It ends when its input does.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from typing import Any

SOFT_SECONDS = 2
"""math-verify's own limit for each of its steps; it cannot interrupt C code, its parent can."""
MEMORY_BYTES = 4 << 30


def compare(reference: str, answer: str) -> bool | None:
    """Return whether math-verify finds both equal; ``None`` if it understands one of them not."""
    from math_verify import parse, verify

    given, truth = (_expressions(parse, text) for text in (answer, reference))
    if not given or not truth:
        return None
    return bool(verify(truth, given, timeout_seconds=SOFT_SECONDS))


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
