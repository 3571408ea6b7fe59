"""What every kernel says of a cell that did not end by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from deepeyes_plugins.sandbox.contracts import ExecutionResult

DIED: Final = (
    "The Python process of this session ended while it ran this cell (os._exit, a crash in native "
    "code, or no memory left). All variables are gone."
)
KILLED: Final = (
    "TimeoutError: the cell did not finish within {:g} s and did not react to the interrupt, so "
    "its process was stopped. All variables are gone."
)
INTERRUPTED: Final = (
    "TimeoutError: the cell did not finish within {:g} s and was interrupted. Variables are kept."
)
MALFORMED: Final = "The session's process broke its own connection and was stopped."


def timed_out(result: ExecutionResult, timeout: float) -> ExecutionResult:
    """Say of a cell's result that it ended because it was interrupted at its time limit.

    Args:
        result: What the cell had done until then.
        timeout: The limit, in seconds.
    """
    separator = "" if not result.stderr or result.stderr.endswith("\n") else "\n"
    return replace(
        result,
        outcome="timeout",
        stderr=f"{result.stderr}{separator}{INTERRUPTED.format(timeout)}",
        error_name="TimeoutError",
    )
