"""A circuit breaker: a server that keeps failing is left alone for a while.

The libraries for it keep the time that is left to themselves; callers that choose among servers,
or wait for one, need it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deepeyes_plugins.remote.errors import CircuitOpenError, RemoteUnavailableError

_ALIVE = frozenset({408, 425, 429})
"""Statuses of a server that works and has too much to do, or to wait for."""


class Circuit:
    """Closed: requests pass. Open: none does. After ``seconds``, one at a time tries again."""

    def __init__(
        self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Open after ``failures`` in a row, for ``seconds``."""
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the last requests failed and none has succeeded since."""
        return self._open_until is not None

    @property
    def wait(self) -> float:
        """Seconds until a request may pass; 0: now."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self._clock())

    def expect_closed(self) -> None:
        """Look whether a request may pass.

        Raises:
            CircuitOpenError: It is not its time.
        """
        if (wait := self.wait) > 0:
            raise CircuitOpenError(
                f"it failed {self._failures} times in a row and is left alone for {wait:.1f} s",
                retry_after=wait,
            )

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Let one request pass and learn from how it ends.

        Raises:
            CircuitOpenError: It is not its time; the body did not run.
        """
        self.expect_closed()
        if self._open_until is not None:
            self._open_until = self._clock() + self._seconds  # The others wait for this trial.
        try:
            yield
        except RemoteUnavailableError as error:
            if error.status in _ALIVE:
                self._close()
            else:
                self._fail()
            raise
        except Exception:
            self._close()  # It answered, if only to refuse.
            raise
        self._close()

    def _fail(self) -> None:
        self._failures += 1
        if self._failures >= self._limit:
            self._open_until = self._clock() + self._seconds

    def _close(self) -> None:
        self._failures = 0
        self._open_until = None
