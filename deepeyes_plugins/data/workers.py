"""Processes that share the work on data files.

Neither forked, since this process may have threads of Ray or torch, nor by multiprocessing, which
would run the main program once more.
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
from types import TracebackType
from typing import Any, Self, TypeVar

from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.files import exclusive

_SMALL_BYTES = 64 << 20

T = TypeVar("T")

Progress = Callable[[int], None]
"""Told how much was done since it was told last."""


def processes_worth(paths: Iterable[Path]) -> int:
    """Return how many processes the work is worth: one where starting others would take longer."""
    size = sum(path.stat().st_size for path in paths)
    return 1 if size < _SMALL_BYTES else len(os.sched_getaffinity(0))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time work on a store; a lock ends with the process that holds it."""
    with exclusive(folder.with_name(f"{folder.name}.lock"), wait=True):
        yield


class Workers:
    """Plays functions in several processes; with one, in this process, at once.

    Each process takes one call after the other. On leaving the context what still runs is killed,
    so that an interruption takes no longer than that.
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
        """Play ``function``, which is found by its name, with arguments that can be pickled.

        Args:
            function: At the top of a module.
            arguments: Of it.
            progress: Is handed on to the function as ``progress``, if given; called from threads.

        Returns:
            A future. Beside what the function raises as :class:`DataError`, it raises that where
            the process is killed or the function fails.
        """
        if self._count > 1:
            return self._pool.submit(self._play, function, arguments, progress)
        future: Future[T] = Future()
        try:
            more = {} if progress is None else {"progress": progress}
            future.set_result(function(*arguments, **more))
        except Exception as error:
            future.set_exception(error)
        return future

    def _play(self, function: Callable[..., T], arguments: Any, progress: Progress | None) -> T:
        process: _Process | None = getattr(self._own, "process", None)
        if process is None or process.ended:
            with self._lock:
                if self._closed:
                    raise DataError("the work was interrupted")
                process = self._own.process = _Process()
                self._processes.append(process)
        result: T = process.play(function, arguments, progress)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()
        self._pool.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()


class _Process:
    """A process that answers calls, one after the other, by its standard input and output."""

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

    def play(self, function: Callable[..., Any], arguments: Any, progress: Progress | None) -> Any:
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
                f"a process that checked data ended with {code}, if it was killed perhaps for lack "
                "of memory; fewer at once (data.check_processes, --processes) need less. "
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
                except BrokenPipeError:  # A request that was on its way.
                    continue


def _serve() -> None:
    """Answer calls until there are none; what plugins print goes to where errors go."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides.
    output, sys.stdout = sys.stdout.buffer, sys.stderr

    def send(kind: str, value: object) -> None:
        output.write(pickle.dumps((kind, value)))
        output.flush()

    while True:
        try:
            function, arguments, tells = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            more = {"progress": partial(send, "progress")} if tells else {}
            send("result", function(*arguments, **more))
        except DataError as error:
            send("error", error)
