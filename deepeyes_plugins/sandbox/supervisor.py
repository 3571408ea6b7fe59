"""Supervisor of a server's worker processes: starts, monitors and restarts them."""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path

from deepeyes_plugins.sandbox.metrics import MULTIPROCESS_VARIABLE, forget_process
from deepeyes_plugins.sandbox.options import ServerOptions, announce
from deepeyes_plugins.sandbox.settings import SandboxSettings

logger = logging.getLogger(__name__)

_STOP_SECONDS = 15.0
_MAX_DEATHS = 5
_DEATH_WINDOW_SECONDS = 60.0


class _Worker:
    """Worker process, with the pipe on which it announces that it is ready."""

    def __init__(self, command: list[str], listener: int, environment: dict[str, str]) -> None:
        reading, writing = os.pipe()
        try:
            self.process = subprocess.Popen(
                [*command, "--announce-fd", str(writing)],
                pass_fds=[listener, writing],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        finally:
            os.close(writing)
        self.handle = os.pidfd_open(self.process.pid)
        self._announcement = reading

    def ready(self) -> str:
        """Wait until the worker is ready; return why it failed, or ""."""
        with open(self._announcement, encoding="utf-8", closefd=False) as announcement:
            line = announcement.readline()
        if not line:
            return "a worker exited at once; see its log above"
        return str(json.loads(line).get("failure", ""))

    def close(self) -> None:
        os.close(self.handle)
        os.close(self._announcement)


def supervise(
    settings: SandboxSettings, options: ServerOptions, listener: socket.socket
) -> str | None:
    """Run workers until SIGTERM, SIGINT or the exit of the parent; restart those that die.

    Args:
        settings: Limits of the sessions, for all workers together.
        options: How the server runs.
        listener: The socket on which all workers accept connections.

    Returns:
        Why the server had to stop, or None after a regular shutdown.
    """
    folder = Path(tempfile.mkdtemp(prefix="deepeyes-sandbox-workers-"))
    try:
        return _Supervisor(settings, options, listener, folder).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Supervisor:
    def __init__(
        self,
        settings: SandboxSettings,
        options: ServerOptions,
        listener: socket.socket,
        folder: Path,
    ) -> None:
        self._settings = _per_worker(settings, options.workers)
        self._options = options
        self._listener = listener
        self._folder = folder
        self._workers: list[_Worker] = []
        self._deaths: deque[float] = deque(maxlen=_MAX_DEATHS)

    def run(self) -> str | None:
        # Signals and process exits make descriptors readable, so that none is missed.
        wake_reader, wake_writer = socket.socketpair()
        wake_reader.setblocking(False)
        wake_writer.setblocking(False)
        signal.set_wakeup_fd(wake_writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        metrics = self._folder / "metrics"
        metrics.mkdir()
        os.environ[MULTIPROCESS_VARIABLE] = str(metrics)
        parent = os.pidfd_open(self._options.parent) if self._options.parent else None
        if parent is not None and os.getppid() != self._options.parent:
            return "the parent process has ended already"
        try:
            self._workers = [self._start(index) for index in range(self._options.workers)]
            for worker in self._workers:
                failure = worker.ready()
                if failure:
                    return failure
            self._announce_ready()
            return self._watch([wake_reader.fileno(), *([] if parent is None else [parent])])
        finally:
            self._stop()

    def _start(self, index: int) -> _Worker:
        pool = {"index": index, "count": self._options.workers, "folder": str(self._folder)}
        options = asdict(self._options) | {"parent": os.getpid(), "announce_fd": -1}
        command = [
            *(sys.executable, "-m", __package__ or "deepeyes_plugins.sandbox"),
            *("--settings", self._settings.model_dump_json()),
            *("--worker", json.dumps({"pool": pool, "options": options})),
            *("--listener", str(self._listener.fileno())),
        ]
        return _Worker(command, self._listener.fileno(), dict(os.environ))

    def _announce_ready(self) -> None:
        port = self._listener.getsockname()[1]
        logger.info(
            "the sandbox listens on http://%s:%d with %d workers",
            *(self._options.host, port, self._options.workers),
        )
        announce(self._options.announce_fd, {"port": port})

    def _watch(self, stop_descriptors: list[int]) -> str | None:
        while True:
            poll = select.poll()
            for descriptor in (*stop_descriptors, *(worker.handle for worker in self._workers)):
                poll.register(descriptor, select.POLLIN)
            ended = {descriptor for descriptor, _ in poll.poll()}
            if ended & set(stop_descriptors):
                return None
            for index, worker in enumerate(self._workers):
                if worker.handle in ended:
                    status = worker.process.wait()
                    self._deaths.append(time.monotonic())
                    if self._is_crash_loop():
                        return f"workers die repeatedly (the last one with status {status})"
                    logger.error("worker %d died (status %d) and is restarted", index, status)
                    forget_process(worker.process.pid)
                    worker.close()
                    self._workers[index] = self._start(index)

    def _is_crash_loop(self) -> bool:
        full = len(self._deaths) == _MAX_DEATHS
        return full and self._deaths[-1] - self._deaths[0] < _DEATH_WINDOW_SECONDS

    def _stop(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in self._workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.close()


def _per_worker(settings: SandboxSettings, workers: int) -> SandboxSettings:
    """Return the settings of one worker: its share of the limits of the whole server."""
    shared = ("max_sessions", "image_cache_mb", "snapshot_store_mb")
    shares = {name: max(1, -(-getattr(settings, name) // workers)) for name in shared}
    return settings.model_copy(update=shares)
