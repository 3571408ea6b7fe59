"""Options of a server process, and the announcement of its start to its parent."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ServerOptions:
    """Options of a server, apart from the settings of its sessions.

    Attributes:
        host: Address to listen on.
        port: Port; 0 picks a free one.
        workers: Number of server processes.
        log_level: debug, info, warning or error.
        log_format: ``text``, or ``json`` for one JSON object per line.
        announce_fd: File descriptor that receives the port, or the reason of a failure; -1: none.
        parent: Process ID of the process with which the server ends; 0: none.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"
    announce_fd: int = -1
    parent: int = 0


def announce(descriptor: int, message: dict[str, object]) -> None:
    """Write a message to the parent process, and close the pipe."""
    if descriptor >= 0:
        with contextlib.suppress(BrokenPipeError), open(descriptor, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps(message) + "\n")
