"""Starts a server as a user would: as a process of its own, with a command line."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepeyes_plugins.sandbox import SandboxSettings

ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable, "-m", "deepeyes_plugins.sandbox")


@dataclass(frozen=True)
class ServerProcess:
    """A server that runs.

    Attributes:
        url: Its base URL.
        pid: Its process id.
        log: Where its standard error goes.
    """

    url: str
    pid: int
    log: Path


@contextlib.contextmanager
def server_process(
    settings: SandboxSettings | None = None,
    *,
    command: Sequence[str] = PYTHON,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """Starts a server, waits until it is ready and ends it with SIGTERM.

    Args:
        settings: Limits of the sessions.
        command: What runs the server; its options follow.
        options: Further options.
        environment: Variables beside those of the tests.
    """
    text = (settings or SandboxSettings()).model_dump_json()
    reading, writing = os.pipe()
    with (
        open(reading, encoding="utf-8") as announcement,
        tempfile.NamedTemporaryFile(suffix=".log") as log,
    ):
        try:
            process = subprocess.Popen(
                [
                    *(*command, "--port", "0", "--settings", text),
                    *("--announce-fd", str(writing), *options),
                ],
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                pass_fds=[writing],
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        finally:
            os.close(writing)
        with process:
            try:
                line = announcement.readline()
                assert line, Path(log.name).read_text()
                port = json.loads(line)["port"]
                yield ServerProcess(f"http://127.0.0.1:{port}", process.pid, Path(log.name))
            finally:
                process.terminate()
