"""How a server process runs, and how it tells whoever started it that it does."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ServerOptions:
    """How a server runs, beside what its sessions may do.

    Attributes:
        host: Address to listen on.
        port: Port; 0 takes a free one.
        workers: Number of processes that serve it.
        log_level: debug, info, warning or error.
        log_format: ``text``, or ``json`` for one JSON object a line.
        announce_fd: File descriptor that is told the port, or the reason of a failure; -1 for none.
        parent: Process id of the process with which the server ends; 0 for none.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"
    announce_fd: int = -1
    parent: int = 0


def announce(descriptor: int, message: dict[str, object]) -> None:
    """Tell whoever started this process one thing, and closes the line."""
    if descriptor >= 0:
        with contextlib.suppress(BrokenPipeError), open(descriptor, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps(message) + "\n")
