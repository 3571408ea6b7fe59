"""Counts and latencies of remote calls, for metrics."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["answered", "refused", "unavailable"]

_WINDOW = 2048
"""Number of latest latencies from which percentiles are computed."""


@dataclass(frozen=True, slots=True)
class CallSnapshot:
    """Counts so far, and latencies of the last 2,048 requests in seconds.

    Attributes:
        requests: Requests that were sent and have ended.
        answered: Requests with a valid response.
        refused: Requests that the server refused; they are not retried.
        unavailable: Requests that failed and may be retried.
        held_back: Requests that were not sent, for instance since the circuit was open.
        p50: Median latency.
        p95: 95th percentile.
        p99: 99th percentile.
        slowest: Maximum latency.
    """

    requests: int = 0
    answered: int = 0
    refused: int = 0
    unavailable: int = 0
    held_back: int = 0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    slowest: float = 0.0


class CallStatistics:
    """Counts the requests to one server."""

    def __init__(self) -> None:
        self._outcomes: Counter[Outcome] = Counter()
        self._held_back = 0
        self._seconds: deque[float] = deque(maxlen=_WINDOW)

    def record(self, outcome: Outcome, seconds: float) -> None:
        """Count a request that has ended."""
        self._outcomes[outcome] += 1
        self._seconds.append(seconds)

    def hold_back(self) -> None:
        """Count a request that was not sent."""
        self._held_back += 1

    def snapshot(self) -> CallSnapshot:
        """Return the counts so far."""
        ordered = sorted(self._seconds) or [0.0]
        return CallSnapshot(
            requests=self._outcomes.total(),
            answered=self._outcomes["answered"],
            refused=self._outcomes["refused"],
            unavailable=self._outcomes["unavailable"],
            held_back=self._held_back,
            p50=percentile(ordered, 0.50),
            p95=percentile(ordered, 0.95),
            p99=percentile(ordered, 0.99),
            slowest=ordered[-1],
        )


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which ``share`` of the values lie (nearest rank).

    Args:
        ordered: Sorted values, at least one.
        share: In [0, 1].
    """
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
