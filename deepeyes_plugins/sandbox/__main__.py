"""Command line of the sandbox server: ``python -m deepeyes_plugins.sandbox --port 8080``."""

from __future__ import annotations

import argparse
import json
import socket
from dataclasses import fields
from pathlib import Path

from pydantic import ValidationError

from deepeyes_plugins.sandbox.options import ServerOptions
from deepeyes_plugins.sandbox.serve import configure_logging, run_worker, serve
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.sandbox.workers import WorkerPool


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deepeyes_plugins.sandbox",
        description="Runs model-written Python in isolated sessions, over HTTP.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, help="port; 0 picks a free one")
    parser.add_argument("--workers", type=int, default=1, help="number of server processes")
    parser.add_argument("--settings", default="{}", help="sandbox settings as a JSON object")
    parser.add_argument("--log-level", default="info", help="debug, info, warning or error")
    parser.add_argument("--log-format", default="text", choices=("text", "json"))
    parser.add_argument("--announce-fd", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)
    # Set by the supervisor when it starts a worker.
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--listener", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the server until SIGTERM, SIGINT or the exit of the parent process."""
    arguments = _arguments()
    try:
        settings = SandboxSettings.model_validate_json(arguments.settings)
    except ValidationError as error:
        raise SystemExit(f"--settings: {error}") from None
    if arguments.worker is None:
        chosen = {option.name: getattr(arguments, option.name) for option in fields(ServerOptions)}
        serve(settings, ServerOptions(**chosen))
        return
    worker = json.loads(arguments.worker)
    options = ServerOptions(**worker["options"] | {"announce_fd": arguments.announce_fd})
    pool = WorkerPool(**worker["pool"] | {"folder": Path(worker["pool"]["folder"])})
    configure_logging(options.log_level, options.log_format)
    with socket.socket(fileno=arguments.listener) as listener:
        run_worker(settings, options, listener, pool)


if __name__ == "__main__":
    main()
