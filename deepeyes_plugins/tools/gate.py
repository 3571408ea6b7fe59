"""The way to a service that may be down: callers wait until it is back, and do not hammer it."""

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
    """Shared by all trajectories of an event loop, in front of one service.

    While the service works, calls pass. After some failures in a row all wait; now and then one
    of them tries, and when it succeeds the others follow.

    Attributes:
        circuit: Whether the service is worth asking at the moment.
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
        """Make an open gate.

        Args:
            service: What it is called in messages.
            unavailable: The error that says that the service is down.
            failures: Failures in a row that close the gate.
            seconds: How long it is closed until the next one tries.
            patience: Seconds that a caller waits altogether.
        """
        self.circuit = Circuit(failures, seconds)
        self._service = service
        self._unavailable = unavailable
        self._seconds = seconds
        self._patience = patience

    async def call(self, ask: Callable[[], Awaitable[T]], *, repeatable: bool) -> T:
        """Wait until the service is worth asking, and ask it.

        Args:
            ask: Makes the request.
            repeatable: Asking again after a failure does no harm: it is done while there is
                patience left.

        Raises:
            InfrastructureError: The service is down for longer than the patience, or for now if
                the request is not repeatable.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._patience
        while True:
            try:
                return await self._attempt(ask)
            except RemoteUnavailableError as error:
                failure = error
            held_back = isinstance(failure, CircuitOpenError)
            if not held_back and not repeatable:
                raise InfrastructureError(f"the {self._service} failed: {failure}") from failure
            wait = failure.retry_after if held_back else self._seconds
            # Those that wait do not all come back at once.
            wait *= random.uniform(1.0, 1.5)
            if clock() + wait > deadline:
                raise InfrastructureError(
                    f"the {self._service} is down for more than {self._patience:g} s: {failure}"
                ) from failure
            await asyncio.sleep(wait)

    async def _attempt(self, ask: Callable[[], Awaitable[T]]) -> T:
        was_open = self.circuit.is_open
        with self.circuit.attempt():
            try:
                answer = await ask()
            except self._unavailable as error:
                raise RemoteUnavailableError(str(error)) from error
        if was_open:
            logger.warning("the %s works again", self._service)
        return answer
