"""Retries with exponential back-off and jitter, which respect Retry-After."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import tenacity

from deepeyes_plugins.remote.errors import RemoteUnavailableError

logger = logging.getLogger(__name__)

_MOST_DOUBLINGS = 64
"""Beyond any waiting time; the power of 1,024 would overflow."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waiting times after consecutive failures, which double from one to the next.

    Attributes:
        first: Seconds after the first failure.
        maximum: Maximum seconds, whatever else is requested.
        jitter: Maximum seconds added at random, so that clients do not retry at the same time.
    """

    first: float
    maximum: float = math.inf
    jitter: float = 0.0

    def seconds(self, failures: int, requested: float = 0.0) -> float:
        """Return the seconds to wait.

        Args:
            failures: Number of consecutive failures, at least one.
            requested: Minimum that the server requests by Retry-After.
        """
        doubled = self.first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS)
        return min(max(doubled + random.uniform(0, self.jitter), requested), self.maximum)

    def attempts(
        self,
        stop: Callable[[tenacity.RetryCallState], bool],
        retried: Callable[[RemoteUnavailableError], bool] = lambda error: True,
    ) -> tenacity.AsyncRetrying:
        """Return an iterator over the attempts of one call; the last error is raised unchanged.

        Use it as ``async for attempt in backoff.attempts(stop): with attempt: …``.

        Args:
            stop: Whether to stop after a failure, a condition of tenacity.
            retried: Whether an error is retried; only :class:`RemoteUnavailableError` is asked for.
        """

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            requested = error.retry_after if isinstance(error, RemoteUnavailableError) else 0.0
            seconds = self.seconds(state.attempt_number, requested)
            logger.info("attempt %d: %s; retry in %.1f s", state.attempt_number, error, seconds)
            return seconds

        return tenacity.AsyncRetrying(
            stop=stop,
            wait=wait,
            retry=tenacity.retry_if_exception(
                lambda error: isinstance(error, RemoteUnavailableError) and retried(error)
            ),
            reraise=True,
        )
