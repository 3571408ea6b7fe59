"""Messages about cells that timed out or were killed, the same for every kernel."""

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
    """Turn the result of a cell that was interrupted at its time limit into a timeout.

    Args:
        result: Result of the interrupted cell.
        timeout: Time limit in seconds.
    """
    separator = "" if not result.stderr or result.stderr.endswith("\n") else "\n"
    return replace(
        result,
        outcome="timeout",
        stderr=f"{result.stderr}{separator}{INTERRUPTED.format(timeout)}",
        error_name="TimeoutError",
    )
