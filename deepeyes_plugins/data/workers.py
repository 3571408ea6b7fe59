"""Process pool for work on data files.

Processes are not forked, because this one may run threads of Ray or torch, nor started by
multiprocessing, which would import the main program again.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.files import exclusive

_SMALL_BYTES = 64 << 20

T = TypeVar("T")

Progress = Callable[[int], None]
"""Called with the amount of work done since the last call."""


def processes_worth(paths: Iterable[Path]) -> int:
    """Return one process for little data, else one per processor."""
    size = sum(path.stat().st_size for path in paths)
    return 1 if size < _SMALL_BYTES else len(os.sched_getaffinity(0))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder; the lock ends with the process."""
    with exclusive(folder.with_name(f"{folder.name}.lock"), wait=True):
        yield


class Workers:
    """Runs functions in several processes; a count of one runs them in this process.

    Each process runs one call at a time. Leaving the context kills running calls, so that an
    interruption takes effect immediately.
    """

    def __init__(self, count: int) -> None:
        """Prepare ``count`` processes; they start with the first calls."""
        self._count = count
        self._pool = ThreadPoolExecutor(count)
        self._own = threading.local()
        self._lock = threading.Lock()
        self._closed = False
        self._processes: list[_Process] = []

    def submit(
        self, function: Callable[..., T], *arguments: Any, progress: Progress | None = None
    ) -> Future[T]:
        """Run ``function`` with arguments that can be pickled.

        Args:
            function: A function at the top level of a module.
            arguments: Its arguments.
            progress: Passed to the function as ``progress``, if given; called from threads.

        Returns:
            A future. It raises :class:`DataError` if the function raises that or fails, or if its
            process is killed.
        """
        if self._count > 1:
            return self._pool.submit(self._run, function, arguments, progress)
        future: Future[T] = Future()
        try:
            keywords = {} if progress is None else {"progress": progress}
            future.set_result(function(*arguments, **keywords))
        except Exception as error:
            future.set_exception(error)
        return future

    def _run(self, function: Callable[..., T], arguments: Any, progress: Progress | None) -> T:
        process: _Process | None = getattr(self._own, "process", None)
        if process is None or process.ended:
            with self._lock:
                if self._closed:
                    raise DataError("the work was interrupted")
                process = self._own.process = _Process()
                self._processes.append(process)
        result: T = process.run(function, arguments, progress)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()
        self._pool.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()


class _Process:
    """A process that runs calls received on its standard input."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._popen = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import _serve; _serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    def run(self, function: Callable[..., Any], arguments: Any, progress: Progress | None) -> Any:
        requests, answers = self._popen.stdin, self._popen.stdout
        assert requests is not None and answers is not None
        try:
            requests.write(pickle.dumps((function, arguments, progress is not None)))
            requests.flush()
            while True:
                kind, value = pickle.load(answers)
                if kind == "result":
                    return value
                if kind == "error":
                    raise value
                if progress is not None:
                    progress(value)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            code = self._popen.wait()
            self._errors.seek(0)
            raise DataError(
                f"a worker process ended with {code}. If it was killed for lack of memory, use "
                "fewer processes (data.check_processes, --processes). "
                + self._errors.read().decode(errors="replace")[-2000:]
            ) from error

    def kill(self) -> None:
        self._popen.kill()

    def close(self) -> None:
        self._popen.wait()
        for file in (self._popen.stdin, self._popen.stdout, self._errors):
            if file is not None:
                try:
                    file.close()
                except BrokenPipeError:  # An unsent request.
                    continue


def _serve() -> None:
    """Run calls until the input ends; redirect the output of plugins to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides.
    output, sys.stdout = sys.stdout.buffer, sys.stderr

    def send(kind: str, value: object) -> None:
        output.write(pickle.dumps((kind, value)))
        output.flush()

    while True:
        try:
            function, arguments, reports = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            keywords = {"progress": partial(send, "progress")} if reports else {}
            send("result", function(*arguments, **keywords))
        except DataError as error:
            send("error", error)
