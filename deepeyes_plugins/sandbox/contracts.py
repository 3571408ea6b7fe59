"""What server and client agree on: results, health and errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["ok", "error", "timeout", "killed", "lost"]
"""How a cell ended.

- ``ok``: it ran to its end.
- ``error``: it raised, or did not compile; the session lives on.
- ``timeout``: it was interrupted at its time limit; the session and its variables live on.
- ``killed``: its process died or had to be killed; the session is gone.
- ``lost``: the session was already gone, so nothing ran.
"""


class SandboxError(Exception):
    """The sandbox could not do its work; never raised for what the executed code did."""


class SandboxUnavailable(SandboxError):
    """No server answers, or the server cannot take more work now."""


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """What one cell did.

    Attributes:
        outcome: How the cell ended.
        stdout: Captured standard output, cut in the middle where it was too long.
        stderr: Captured standard error with plain-text tracebacks, cut likewise.
        result: Text of the last expression's value; "" if there was none or it was displayed as
            an image.
        images: Displayed images in order, each an encoded PNG.
        duration: Wall time of the cell in seconds.
        error_name: Class name of the exception that ended the cell, if one did;
            "SandboxFailover" where the cell ran but its output went with its server.
        lost_names: Variables and files that this session had and has no more, with the reason: in
            the first cell after a restore, and where the session or its process is gone.
    """

    outcome: Outcome
    stdout: str = ""
    stderr: str = ""
    result: str = ""
    images: list[bytes] = field(default_factory=list)
    duration: float = 0.0
    error_name: str | None = None
    lost_names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Health:
    """What ``GET /health`` tells.

    Attributes:
        status: "ok" when sessions can be created, "starting" while the interpreter warms up.
        sessions: Number of sessions that have a process.
        stored: Number of sessions that were put away.
        max_sessions: Number of sessions that can have a process.
        workers: Number of server processes.
        isolation: Layer name to "active" (and how, if not by the kernel alone) or to the reason
            why it is missing.
        notes: What else users may want to know: network access, fonts.
        versions: Component name to version.
    """

    status: str
    sessions: int
    max_sessions: int
    isolation: dict[str, str]
    versions: dict[str, str]
    stored: int = 0
    workers: int = 1
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def isolated(self) -> bool:
        """Whether every isolation layer is active."""
        return all(state.startswith("active") for state in self.isolation.values())
