"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

LARGEST_PORT = 65535

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Port = Annotated[int, typer.Option(min=0, max=LARGEST_PORT, help="Port; 0 takes a free one.")]


def redis_url(value: str | None) -> str | None:
    """Let through what a Redis client takes for an address.

    Raises:
        typer.BadParameter: It is something else.
    """
    if value is not None and not value.startswith(("redis://", "rediss://", "unix://")):
        raise typer.BadParameter(f"{value!r} is no address such as redis://host:6379/0")
    return value


class LogLevel(StrEnum):
    """How much a server says."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
