"""Run the frameworks' own commands as a user would, with their output in a log file."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from deepeyes_plugins.sandbox.kernels.fork.isolation import die_with_parent

POLL_SECONDS = 0.5
STOP_SECONDS = 10.0
LOG_TAIL_LINES = 25

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Nothing here needs a network."""


class StageError(RuntimeError):
    """A command of a stage failed; the message has its log's end and how to run it by hand."""


class Process:
    """A child process in a group of its own, so that its children end with it.

    It ends with the thread that starts it, also if that is killed.
    """

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start ``command``; its output goes to ``log``."""
        self.command = list(command)
        self.log = log
        self._variables = dict(environment or {})
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **OFFLINE, **self._variables},
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),
            )

    def running(self) -> bool:
        """Whether it has not ended yet.

        Raises:
            StageError: It has ended with an error.
        """
        status = self._process.poll()
        if status is None:
            return True
        if status:
            raise self.failure(f"ended with status {status}")
        return False

    def failure(self, reason: str) -> StageError:
        """An error that tells what happened and how to see it again."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        variables = "".join(
            f"{key}={shlex.quote(value)} " for key, value in self._variables.items()
        )
        return StageError(
            f"{variables}{shlex.join(self.command)}\n{reason}. Its log, {self.log}, ends with:\n"
            + "\n".join(lines[-LOG_TAIL_LINES:])
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group, if any of it is left."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within ``seconds``."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll() is not None


def stop(processes: Sequence[Process]) -> None:
    """End processes with all their children, gently first and all at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        for process in processes:
            process.signal(number)
        deadline = time.monotonic() + STOP_SECONDS
        if all([process.wait(max(0.0, deadline - time.monotonic())) for process in processes]):
            break
    for process in processes:
        process.signal(signal.SIGKILL)  # also whatever a process left behind in its group
        process.wait(STOP_SECONDS)


def run(
    processes: Sequence[Process],
    progress: Callable[[], None],
    *,
    limit: float,
) -> None:
    """Wait for processes, calling ``progress`` all the while; whatever happens, they end.

    Args:
        processes: Processes that run side by side.
        progress: Called about twice a second.
        limit: Seconds that they may take.

    Raises:
        StageError: One of them failed, or the time is over.
    """
    waiting = list(processes)
    deadline = time.monotonic() + limit
    try:
        while waiting := [process for process in waiting if process.running()]:
            if time.monotonic() > deadline:
                raise waiting[0].failure(f"did not end within {limit:.0f} seconds")
            progress()
            time.sleep(POLL_SECONDS)
        progress()
    finally:
        stop(processes)


@contextmanager
def model_servers(
    commands: Mapping[Path, Sequence[str]],
    environment: Mapping[str, str],
    *,
    limit: float = 300.0,
) -> Iterator[list[str]]:
    """Run OpenAI-compatible servers while the block lasts; they start side by side.

    Args:
        commands: The command line of each, by the file for its output; ``{port}`` in it becomes
            a free port.
        environment: Further environment variables.
        limit: Seconds until they must answer.

    Yields:
        Their base URLs, ending in ``/v1``.

    Raises:
        StageError: One of them ended or did not answer in time.
    """
    servers: dict[int, Process] = {}
    try:
        for port, (log, command) in zip(free_ports(len(commands)), commands.items(), strict=True):
            arguments = [part.replace("{port}", str(port)) for part in command]
            servers[port] = Process(arguments, log, environment)
        deadline = time.monotonic() + limit
        for port, process in servers.items():
            while not answers(port):
                if not process.running() or time.monotonic() > deadline:
                    raise process.failure("did not answer")
                time.sleep(POLL_SECONDS)
        yield [f"http://127.0.0.1:{port}/v1" for port in servers]
    finally:
        stop(list(servers.values()))


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface on which nothing listens at the moment."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def answers(port: int) -> bool:
    """Whether a model server is ready on a port of the loopback interface."""
    try:
        with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
