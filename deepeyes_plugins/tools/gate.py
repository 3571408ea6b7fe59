"""Circuit breaker with retries for a service that may be down."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from deepeyes_plugins.remote.circuit import Circuit
from deepeyes_plugins.remote.errors import CircuitOpenError, RemoteUnavailableError
from deepeyes_plugins.rollout.contracts import InfrastructureError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Gate:
    """Circuit breaker of one service, shared by all trajectories of an event loop.

    After consecutive failures the circuit opens and calls wait. Periodically one call is a probe,
    whose success closes the circuit.

    Attributes:
        circuit: State of the circuit breaker.
    """

    def __init__(
        self,
        service: str,
        unavailable: type[Exception],
        *,
        failures: int,
        seconds: float,
        patience: float,
    ) -> None:
        """Start with a closed circuit.

        Args:
            service: Name of the service in messages.
            unavailable: Error type that means that the service is down.
            failures: Consecutive failures that open the circuit.
            seconds: Seconds until the next probe.
            patience: Maximum total seconds that a caller waits.
        """
        self.circuit = Circuit(failures, seconds)
        self._service = service
        self._unavailable = unavailable
        self._seconds = seconds
        self._patience = patience

    async def call(self, send: Callable[[], Awaitable[T]], *, repeatable: bool) -> T:
        """Send a request once the circuit is closed, with retries.

        Args:
            send: Sends the request.
            repeatable: Whether the request can be retried safely.

        Raises:
            InfrastructureError: The service is down for longer than ``patience``, or the request
                failed and is not repeatable.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._patience
        while True:
            try:
                return await self._attempt(send)
            except RemoteUnavailableError as error:
                failure = error
            circuit_open = isinstance(failure, CircuitOpenError)
            if not circuit_open and not repeatable:
                raise InfrastructureError(f"the {self._service} failed: {failure}") from failure
            wait = failure.retry_after if circuit_open else self._seconds
            # Jitter, so that waiting calls do not retry at the same time.
            wait *= random.uniform(1.0, 1.5)
            if clock() + wait > deadline:
                raise InfrastructureError(
                    f"the {self._service} is down for more than {self._patience:g} s: {failure}"
                ) from failure
            await asyncio.sleep(wait)

    async def _attempt(self, send: Callable[[], Awaitable[T]]) -> T:
        was_open = self.circuit.is_open
        with self.circuit.attempt():
            try:
                answer = await send()
            except self._unavailable as error:
                raise RemoteUnavailableError(str(error)) from error
        if was_open:
            logger.warning("the %s is available again", self._service)
        return answer
