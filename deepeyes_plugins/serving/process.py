"""Start of our HTTP servers: token, listening socket, logging and configuration of uvicorn."""

from __future__ import annotations

import logging
import os
import socket
import textwrap
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp

from deepeyes_plugins.printable import printable
from deepeyes_plugins.serving.connections import Limits, bounded
from deepeyes_plugins.serving.guard import LOOPBACK

_BACKLOG = 4096
_KEEP_ALIVE_SECONDS = 120


def configure_logging(level: str, log_format: Literal["text", "json"] = "text") -> None:
    """Log to standard error, as text or as one JSON object per line."""
    handler = logging.StreamHandler()
    if log_format == "json":
        from pythonjsonlogger.json import JsonFormatter

        fields = ["levelname", "name", "message", "process"]
        handler.setFormatter(JsonFormatter(fields, style=",", timestamp=True))
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(_as_one_line)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _as_one_line(record: logging.LogRecord) -> bool:
    """Show control characters of a record, so that no text forges a line; indent its traceback."""
    record.msg, record.args = printable(record.getMessage()), None
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    if record.exc_text:
        record.exc_text = textwrap.indent(printable(record.exc_text, lines=True), "  ")
        record.exc_info = None
    return True


def bearer_token(variable: str, host: str, danger: str) -> str | None:
    """Return the token that clients must send; ``None`` for a server on loopback without one.

    Args:
        variable: Environment variable of the token.
        host: Address on which the server will listen.
        danger: What anyone who reaches the server could do, for the error message.

    Raises:
        ValueError: A server that others can reach has no token.
    """
    token = os.environ.get(variable, "").strip() or None
    if token is None and host not in LOOPBACK:
        raise ValueError(
            f"listening on {host} requires a bearer token, or anyone who can reach it could "
            f"{danger}: set ${variable}, or listen on 127.0.0.1"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        OSError: The address is in use, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def configuration(app: ASGIApp, *, log_level: str, shutdown_seconds: int) -> uvicorn.Config:
    """Return the configuration of a server with limits on its connections."""
    http: Any = bounded(Limits.of_process())
    return uvicorn.Config(
        app,
        http=http,
        ws="none",
        log_config=None,
        log_level=log_level if log_level != "info" else "warning",
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=shutdown_seconds,
    )
