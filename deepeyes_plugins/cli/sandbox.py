"""``deepeyes sandbox``: run a code sandbox of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from deepeyes_plugins.settings import SettingsError, load_settings


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8080,
    config: Annotated[
        Path | None, typer.Option(help="An agent.yaml; its part `sandbox` sets the limits.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run a sandbox server for other machines or jobs.

    Point agents to it with `sandbox.url` in agent.yaml or DEEPEYES_SANDBOX_URL. Ask for a bearer
    token by setting the environment variable DEEPEYES_TOKEN_SANDBOX here and there.
    """
    try:
        settings = load_settings(config).sandbox
    except SettingsError as error:
        raise typer.BadParameter(str(error), param_hint="--config") from error
    try:
        from deepeyes_plugins.sandbox.__main__ import main
    except ModuleNotFoundError as error:
        typer.echo(f"error: {error}: pip install 'deepeyes-plugins[sandbox]'", err=True)
        raise typer.Exit(1) from error
    sys.argv = [
        "deepeyes sandbox serve",
        *("--host", host, "--port", str(port), "--log-level", log_level),
        *("--settings", settings.model_dump_json()),
    ]
    main()
