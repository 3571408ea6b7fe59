"""Outcome of one check of a conformance suite."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


async def failure(check: Awaitable[None], seconds: float) -> str | None:
    """Run a check and return why it failed; ``None`` if it passed.

    Args:
        check: An ``AssertionError`` in it says what was expected.
        seconds: Time limit.
    """
    try:
        await asyncio.wait_for(check, seconds)
    except AssertionError as error:
        return str(error) or "an assertion failed"
    except TimeoutError:
        return f"expected the check to end within {seconds:g} s, it timed out"
    except Exception as error:
        return f"it raised an unexpected {type(error).__name__}: {error}"
    return None
