"""What Prometheus can know of a server."""

from __future__ import annotations

import os
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

MULTIPROCESS_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder through which the workers of one server add up; the client library's own."""

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 200)
_PREFIX = "deepeyes_sandbox"


class Metrics:
    """Counters, gauges and histograms of one server process."""

    def __init__(self) -> None:
        """Start at zero."""
        self._registry = registry = CollectorRegistry()

        def gauge(name: str, description: str, label: str = "") -> Gauge:
            return Gauge(
                f"{_PREFIX}_{name}",
                description,
                [label] if label else [],
                registry=registry,
                multiprocess_mode="livesum",
            )

        def counter(name: str, description: str, label: str = "") -> Counter:
            labels = [label] if label else []
            return Counter(f"{_PREFIX}_{name}", description, labels, registry=registry)

        def histogram(name: str, description: str) -> Histogram:
            return Histogram(
                f"{_PREFIX}_{name}_seconds", description, registry=registry, buckets=_SECONDS
            )

        self.sessions = gauge("sessions", "Sessions, live or put away.", "state")
        self.memory = gauge("memory_bytes", "Memory that live sessions hold alone, sampled.")
        self.images = gauge("image_bytes", "Encoded images that are held.")
        self.opened = counter("sessions_opened", "Sessions that were opened.")
        self.refused = counter("sessions_refused", "Sessions that found no room.")
        self.closed = counter("sessions_closed", "Sessions that ended.", "reason")
        self.cells = counter("cells", "Cells that have run.", "outcome")
        self.evictions = counter("evictions", "Sessions that were put away.", "reason")
        self.restores = counter("restores", "Sessions that came back.", "result")
        self.saves = counter("saves", "Snapshots for other servers.", "result")
        self.cell_seconds = histogram("cell", "Time that cells ran.")
        self.queue_seconds = histogram("queue", "Time that cells waited for earlier ones.")
        self.open_seconds = histogram("open", "Time to open a session.")
        self.restore_seconds = histogram("restore", "Time to bring a session back.")

    def text(self) -> bytes:
        """The exposition format; of all workers together where there are several."""
        registry = self._registry
        if MULTIPROCESS_VARIABLE in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)


def forget_process(pid: int) -> None:
    """Take the gauges of a worker that has died out of the sums."""
    mark_process_dead(pid)
