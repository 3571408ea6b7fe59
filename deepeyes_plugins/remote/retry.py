"""Retries with exponential back-off and jitter, which respect Retry-After."""

from __future__ import annotations

import logging
from collections.abc import Callable

import tenacity

from deepeyes_plugins.remote.errors import RemoteUnavailableError
from deepeyes_plugins.remote.settings import RemoteSettings

logger = logging.getLogger(__name__)


def attempts(
    settings: RemoteSettings,
    stop: Callable[[tenacity.RetryCallState], bool] | None = None,
    final: tuple[type[RemoteUnavailableError], ...] = (),
) -> tenacity.AsyncRetrying:
    """Return an iterator over the attempts of one call.

    Use it as ``async for attempt in attempts(settings): with attempt: …``.

    Only :class:`RemoteUnavailableError` is retried; the last error is raised unchanged.

    Args:
        settings: Number of retries and waiting times.
        stop: Whether to stop; by default after ``settings.retries`` retries.
        final: Subclasses that are not retried.
    """
    backoff = tenacity.wait_exponential(
        settings.retry_wait, settings.retry_wait_maximum
    ) + tenacity.wait_random(0, settings.retry_wait)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        requested = error.retry_after if isinstance(error, RemoteUnavailableError) else 0.0
        seconds = min(max(backoff(state), requested), settings.retry_wait_maximum)
        logger.info("attempt %d: %s; retry in %.1f s", state.attempt_number, error, seconds)
        return seconds

    return tenacity.AsyncRetrying(
        stop=stop or tenacity.stop_after_attempt(settings.retries + 1),
        wait=wait,
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, RemoteUnavailableError) and not isinstance(error, final)
        ),
        reraise=True,
    )
