"""Circuit breaker: sends no requests to a server that keeps failing, until a probe succeeds.

Existing libraries do not expose the remaining time, which callers need to choose among servers or
to wait for one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deepeyes_plugins.remote.errors import (
    OVERLOADED_STATUSES,
    CircuitOpenError,
    RemoteUnavailableError,
)
from deepeyes_plugins.remote.retry import Backoff

logger = logging.getLogger(__name__)


class Circuit:
    """A circuit breaker.

    Requests pass while the circuit is closed. It opens after ``failures`` consecutive failures, for
    the back-off; then one request at a time probes the server.

    Attributes:
        cause: The error that opened it last.
    """

    def __init__(
        self,
        failures: int,
        backoff: Backoff,
        *,
        service: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with a closed circuit.

        Args:
            failures: Consecutive failures that open it.
            backoff: Seconds for which it stays open, by the number of openings in a row.
            service: Name of the service in warnings about its outages; empty if the callers report
                the errors.
            clock: Time in seconds.
        """
        self.cause: Exception | None = None
        self._service = service
        self._limit = failures
        self._backoff = backoff
        self._clock = clock
        self._failures = self._openings = 0
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
    def attempt(self, *, even_if_open: bool = False) -> Iterator[None]:
        """Let one request pass; its outcome opens or closes the circuit.

        Args:
            even_if_open: Let it pass in any case, since there is no other server.

        Raises:
            CircuitOpenError: The circuit is open; the body did not run.
        """
        if not even_if_open:
            self.expect_closed()
        probes = self.is_open and not self.wait
        if probes:  # Others wait for it.
            self._open_until = self._clock() + self._backoff.seconds(self._openings)
        try:
            yield
        except RemoteUnavailableError as error:
            if error.status in OVERLOADED_STATUSES:
                self.close()
            else:
                self.fail(error, probed=probes)
            raise
        except Exception:
            self.close()  # A server that refuses a request is available.
            raise
        self.close()

    def fail(self, cause: Exception, *, probed: bool = False) -> None:
        """Count a failure; of those while the circuit is open, only a probe's prolongs it."""
        self._failures += 1
        if probed or (self._failures >= self._limit and not self.wait):
            self.open(cause)

    def open(self, cause: Exception, seconds: float | None = None) -> None:
        """Open the circuit, by default for the back-off."""
        was_open = self.is_open
        self._openings += 1
        seconds = self._backoff.seconds(self._openings) if seconds is None else seconds
        self.cause, self._open_until = cause, self._clock() + seconds
        if self._service and not was_open:
            logger.warning("%s: circuit open for %g s: %s", self._service, seconds, cause)

    def close(self) -> None:
        """Close the circuit."""
        if self._service and self.is_open:
            logger.warning("%s: available again", self._service)
        self._failures = self._openings = 0
        self._open_until = None
