"""Options shared by several commands."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from deepeyes_plugins.remote.urls import displayed, refuse_credentials

LARGEST_PORT = 65535

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Port = Annotated[
    int, typer.Option(metavar="PORT", min=0, max=LARGEST_PORT, help="Port; 0 chooses a free one.")
]


def redis_url(value: str | None) -> str | None:
    """Check that a value is a Redis URL without a password.

    Raises:
        typer.BadParameter: The value is not a Redis URL, or contains a password.
    """
    if value is not None and not value.startswith(("redis://", "rediss://", "unix://")):
        raise typer.BadParameter(
            f"{displayed(value)!r} is not a Redis URL such as redis://host:6379/0"
        )
    try:
        return refuse_credentials(value, "redis_password_env (by default DEEPEYES_REDIS_PASSWORD)")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


class LogLevel(StrEnum):
    """Log level of a server."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
