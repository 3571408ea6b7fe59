"""Command line of the sandbox server: ``python -m deepeyes_plugins.sandbox --port 8080``."""

from __future__ import annotations

import argparse

from pydantic import ValidationError

from deepeyes_plugins.sandbox.serve import ServerOptions, ignore_workers, serve
from deepeyes_plugins.sandbox.settings import SandboxSettings


def main() -> None:
    """Run the server until SIGTERM, SIGINT or the exit of the parent process."""
    parser = argparse.ArgumentParser(
        prog="python -m deepeyes_plugins.sandbox",
        description="Runs model-written Python in isolated sessions, over HTTP.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="port; 0 picks a free one")
    parser.add_argument("--settings", default="{}", help="sandbox settings as a JSON object")
    parser.add_argument("--log-level", default="info", help="debug, info, warning or error")
    parser.add_argument("--log-format", default="text", choices=("text", "json"))
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--announce-fd", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)
    chosen = vars(parser.parse_args())
    ignore_workers(chosen.pop("workers"))
    try:
        settings = SandboxSettings.model_validate_json(chosen.pop("settings"))
    except ValidationError as error:
        raise SystemExit(f"--settings: {error}") from None
    serve(settings, ServerOptions(**chosen))


if __name__ == "__main__":
    main()
