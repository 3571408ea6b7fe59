"""``deepeyes eval run``: run VLMEvalKit and report the outcome by the exit status."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from deepeyes_plugins.cli.console import Console
from deepeyes_plugins.cli.errors import complain
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.hosts.openai.probe import require_server
from deepeyes_plugins.quickstart.process import StageError, model_servers
from deepeyes_plugins.rollout.contracts import InfrastructureError
from deepeyes_plugins.sandbox.kernels.fork.isolation import die_with_parent
from deepeyes_plugins.settings import SETTINGS_VARIABLE, load_settings
from eval_plugins.vlmevalkit.launch import (
    LaunchError,
    Outcome,
    command,
    expected,
    outcomes,
    rescores_in_place,
    servers,
    work_dir,
)
from eval_plugins.vlmevalkit.leftovers import (
    set_broken_checkpoints_aside,
    set_outdated_scores_aside,
)

_SERVER_STARTS_WITHIN = 1800.0


def run(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="ARGS",
            help="VLMEvalKit's own arguments: --config or --data, --work-dir, --api-nproc, "
            "--reuse, --judge … [default model: DeepEyesV2]",
            show_default=False,
        ),
    ],
    checkout: Annotated[
        Path | None,
        typer.Option(
            envvar="DEEPEYES_VLMEVALKIT",
            metavar="DIR",
            help="Upstream VLMEvalKit checkout to run instead of the installed ms-vlmeval.",
        ),
    ] = None,
    agent: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="agent.yaml. [default: $DEEPEYES_AGENT_CONFIG]"),
    ] = None,
    trajectories: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the trajectories. [default: $DEEPEYES_TRAJECTORIES, the one in "
            "agent.yaml, or `trajectories` in the work dir]",
        ),
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Server to run for the evaluation, for instance "
            "'vllm serve runs/rl/model --port {port}'; {port} becomes a free port.",
        ),
    ] = None,
    allow_failed_samples: Annotated[
        bool,
        typer.Option("--allow-failed-samples", help="Exit with 0 even if samples failed."),
    ] = False,
) -> None:
    """Evaluate DeepEyesV2 with VLMEvalKit; its arguments are passed on unchanged.

    The exit status is 1 if a dataset failed or was not evaluated, or if samples failed; otherwise
    it is VLMEvalKit's. Run the same command with --reuse to repeat failed samples; outdated scores
    are then renamed and the datasets scored again.
    """
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        started = command(checkout, arguments)
        asked = expected(arguments)
        logged = trajectories or load_settings(agent).trajectories
    except (LaunchError, SettingsError) as error:
        complain(str(error), 2)
    folder = work_dir(arguments, os.environ)
    chosen = {SETTINGS_VARIABLE: agent, "DEEPEYES_TRAJECTORIES": logged or folder / "trajectories"}
    environment = dict(os.environ) | {
        name: str(path.resolve()) for name, path in chosen.items() if path is not None
    }
    for path in set_broken_checkpoints_aside(folder):
        console.print(f"Truncated by a killed run: {path}. Its samples are repeated.")
    if rescores_in_place(arguments):
        for path in set_outdated_scores_aside(folder, asked):
            console.print(f"Outdated scores, as some samples are repeated: renamed to {path}")

    since = datetime.now().astimezone()
    with _server(serve, folder) as variables:
        os.environ.update(variables)
        try:
            for server in servers(arguments, agent):
                asyncio.run(require_server(server))
        except InfrastructureError as error:
            complain(str(error))
        code = _wait(started, environment | variables)
    results = outcomes(folder, asked, since)
    _show(console, results, folder)
    failed = any(result.failure is not None for result in results)
    lost = any(result.failed_samples for result in results) and not allow_failed_samples
    raise typer.Exit(code or int(failed or lost))


@contextmanager
def _server(serve: str | None, folder: Path) -> Iterator[dict[str, str]]:
    """Run a server, if one is given, and yield the variables with which it is found."""
    if serve is None:
        yield {}
        return
    earlier = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        commands = {folder / "server.log": shlex.split(serve)}
        # The programs of this environment are found although it may not be activated.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        with model_servers(commands, {"PATH": path}, limit=_SERVER_STARTS_WITHIN) as (url,):
            yield {"DEEPEYES_OPENAI_URL": url}
    except StageError as error:
        complain(str(error))
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _wait(started: list[str], environment: dict[str, str]) -> int:
    """Run a command to completion, forward SIGTERM to it, and return its exit status."""
    together = partial(die_with_parent, os.getpid(), signal.SIGTERM)
    process = subprocess.Popen(started, env=environment, preexec_fn=together)
    earlier = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                continue  # The terminal sends Ctrl-C to the child process, too.
    finally:
        signal.signal(signal.SIGTERM, earlier)
    return code if code >= 0 else 128 - code


def _show(console: Console, results: list[Outcome], folder: Path) -> None:
    for result in results:
        name = f"{result.model} on {result.dataset}" if result.model else result.dataset
        if result.failure is not None:
            console.print(f"failed: {name}: {result.failure}")
        if count := result.failed_samples:
            console.print(
                f"{count} failed sample{'s' * (count > 1)}: {name}; run again with --reuse"
            )
    succeeded = sum(result.failure is None for result in results)
    console.print(
        f"{succeeded} of {len(results)} datasets succeeded. Report: deepeyes eval report {folder}"
    )
