"""Circuit breaker with retries for a service that may be down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import tenacity

from deepeyes_plugins.remote.circuit import Circuit
from deepeyes_plugins.remote.errors import CircuitOpenError, RemoteUnavailableError
from deepeyes_plugins.remote.retry import Backoff
from deepeyes_plugins.rollout.contracts import InfrastructureError

T = TypeVar("T")


class Gate:
    """Circuit breaker of one service, shared by all trajectories of an event loop.

    After consecutive failures the circuit opens and calls wait. Periodically one call is a probe,
    whose success closes the circuit.

    Attributes:
        circuit: State of the circuit breaker.
    """

    def __init__(self, service: str, *, failures: int, seconds: float, patience: float) -> None:
        """Start with a closed circuit.

        Args:
            service: Name of the service in messages.
            failures: Consecutive failures that open the circuit.
            seconds: Seconds until the next probe.
            patience: Maximum total seconds that a caller waits.
        """
        self.circuit = Circuit(failures, Backoff(seconds, seconds), service=service)
        self._service = service
        self._backoff = Backoff(seconds, 2 * seconds, jitter=seconds)
        self._patience = patience

    async def call(self, send: Callable[[], Awaitable[T]], *, repeatable: bool) -> T:
        """Send a request once the circuit is closed, with retries.

        Args:
            send: Sends the request; raises :class:`RemoteUnavailableError` if the service is down.
            repeatable: Whether the request can be retried safely.

        Raises:
            InfrastructureError: The service is down for longer than ``patience``, or the request
                failed and is not repeatable.
        """

        def retried(error: RemoteUnavailableError) -> bool:
            return repeatable or isinstance(error, CircuitOpenError)

        stop = tenacity.stop_before_delay(self._patience)
        try:
            async for attempt in self._backoff.attempts(stop, retried):
                with attempt, self.circuit.attempt():
                    return await send()
        except RemoteUnavailableError as error:
            outage = f"is down for more than {self._patience:g} s" if retried(error) else "failed"
            raise InfrastructureError(f"the {self._service} {outage}: {error}") from error
        raise AssertionError("unreachable: the loop returns or raises")
