"""Types that the sandbox's server and client share: results, health and errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from deepeyes_plugins.printable import printable
from deepeyes_plugins.remote.errors import RemoteUnavailableError
from deepeyes_plugins.remote.redaction import redact

Outcome = Literal["ok", "error", "timeout", "killed", "lost"]
"""How a cell ended.

- ``ok``: it completed.
- ``error``: it raised an exception or did not compile; the session continues.
- ``timeout``: it was interrupted at its time limit; the session continues with its variables.
- ``killed``: its process died or was killed; the session has ended.
- ``lost``: the session had already ended, so nothing ran.
"""


class SandboxError(Exception):
    """Infrastructure error of the sandbox; never raised for errors of the executed code."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(printable(redact(message), lines=True), **details)


class SandboxUnavailable(SandboxError, RemoteUnavailableError):
    """No server responds, or the server is full."""


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """Result of a cell.

    Attributes:
        outcome: How the cell ended.
        stdout: Captured standard output, truncated in the middle if it is too long.
        stderr: Captured standard error with plain-text tracebacks, truncated likewise.
        result: Text of the last expression's value; "" if there is none or if it was displayed as
            an image.
        images: Displayed images in order, each an encoded PNG.
        duration: Wall time of the cell in seconds.
        error_name: Class name of the exception that ended the cell, if one did;
            "SandboxFailover" if the cell ran but its output was lost with its server.
        lost_names: Variables and files that this session lost, each with the reason: reported in
            the first cell after a restore, and when the session or its process has ended.
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
    """Response of ``GET /health``.

    Attributes:
        status: "ok" when sessions can be created, "starting" while the interpreter warms up.
        sessions: Number of sessions that have a process.
        stored: Number of evicted sessions.
        max_sessions: Maximum number of sessions that have a process.
        workers: Number of server processes.
        isolation: Layer name to "active" (and how, if not by the kernel alone) or to the reason
            why it is missing.
        notes: Other facts, such as network access and fonts.
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
