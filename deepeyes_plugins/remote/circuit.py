"""Circuit breaker: sends no requests to a server that keeps failing, until a probe succeeds.

Existing libraries do not expose the remaining time, which callers need to choose among servers or
to wait for one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deepeyes_plugins.remote.errors import CircuitOpenError, RemoteUnavailableError

_ALIVE = frozenset({408, 425, 429})
"""Statuses of a server that works but is overloaded."""


class Circuit:
    """A circuit breaker.

    Requests pass while the circuit is closed. It opens after ``failures`` consecutive failures,
    for ``seconds``; then one request at a time probes the server.
    """

    def __init__(
        self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the circuit is open or being probed."""
        return self._open_until is not None

    @property
    def wait(self) -> float:
        """Seconds until a request may pass; 0 for now."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self._clock())

    def expect_closed(self) -> None:
        """Check that a request may pass.

        Raises:
            CircuitOpenError: The circuit is open.
        """
        if (wait := self.wait) > 0:
            raise CircuitOpenError(
                f"circuit open for {wait:.1f} s after {self._failures} consecutive failures",
                retry_after=wait,
            )

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Let one request pass; its outcome opens or closes the circuit.

        Raises:
            CircuitOpenError: The circuit is open; the body did not run.
        """
        self.expect_closed()
        if self._open_until is not None:
            self._open_until = self._clock() + self._seconds  # Others wait for this probe.
        try:
            yield
        except RemoteUnavailableError as error:
            if error.status in _ALIVE:
                self._close()
            else:
                self._fail()
            raise
        except Exception:
            self._close()  # A server that refuses a request is available.
            raise
        self._close()

    def _fail(self) -> None:
        self._failures += 1
        if self._failures >= self._limit:
            self._open_until = self._clock() + self._seconds

    def _close(self) -> None:
        self._failures = 0
        self._open_until = None
