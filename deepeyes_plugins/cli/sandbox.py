"""``deepeyes sandbox serve``: run a sandbox server."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from deepeyes_plugins.cli.options import LogLevel, Port, redis_url
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.settings import load_settings


class LogFormat(StrEnum):
    """Format of log records."""

    TEXT = "text"
    JSON = "json"


def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Port = 8080,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, hidden=True)] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            callback=redis_url,
            help="Redis for sessions, as redis://host:6379/0; several servers can share it.",
        ),
    ] = None,
    token_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable with the bearer token that clients must send.",
        ),
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(metavar="KERNEL", help="fork, jupyter, or a custom kernel as module:factory."),
    ] = None,
    allow_unisolated: Annotated[
        bool,
        typer.Option("--allow-unisolated", help="Run even if an isolation layer is missing."),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="agent.yaml whose `sandbox` section sets the limits."),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="Log level.")] = LogLevel.INFO,
    log_format: Annotated[LogFormat, typer.Option(help="Log format.")] = LogFormat.TEXT,
) -> None:
    """Run a sandbox server for other machines or jobs.

    Point agents to it with `sandbox.url` in agent.yaml or DEEPEYES_SANDBOX_URL. On any address
    except loopback it requires a bearer token: set DEEPEYES_TOKEN_SANDBOX for the server and for
    its clients.
    """
    options_given: dict[str, Any] = {
        "redis_url": redis,
        "token_env": token_env,
        "kernel": kernel,
        "allow_unisolated": allow_unisolated or None,
    }
    try:
        settings = load_settings(config).sandbox
    except SettingsError as error:
        raise typer.BadParameter(str(error), param_hint="--config") from error
    overrides = {name: value for name, value in options_given.items() if value is not None}
    from deepeyes_plugins.sandbox.serve import ServerOptions, ignore_workers
    from deepeyes_plugins.sandbox.serve import serve as run

    ignore_workers(workers)
    options = ServerOptions(host, port, log_level.value, log_format.value)
    run(settings.model_copy(update=overrides), options)
