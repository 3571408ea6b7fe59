"""Prometheus metrics of the sandbox server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 200)
_PREFIX = "deepeyes_sandbox"


class Metrics:
    """Counters, gauges and histograms of one server process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def gauge(name: str, description: str, label: str = "") -> Gauge:
            labels = [label] if label else []
            return Gauge(f"{_PREFIX}_{name}", description, labels, registry=registry)

        def counter(name: str, description: str, label: str = "") -> Counter:
            labels = [label] if label else []
            return Counter(f"{_PREFIX}_{name}", description, labels, registry=registry)

        def histogram(name: str, description: str) -> Histogram:
            return Histogram(
                f"{_PREFIX}_{name}_seconds", description, registry=registry, buckets=_SECONDS
            )

        self.sessions = gauge("sessions", "Sessions, live or evicted.", "state")
        self.memory = gauge("memory_bytes", "Unshared memory of live sessions, sampled.")
        self.images = gauge("image_bytes", "Encoded images in the cache.")
        self.opened = counter("sessions_opened", "Sessions created.")
        self.refused = counter("sessions_refused", "Sessions refused because the server was full.")
        self.closed = counter("sessions_closed", "Sessions ended.", "reason")
        self.cells = counter("cells", "Cells run.", "outcome")
        self.evictions = counter("evictions", "Sessions evicted.", "reason")
        self.restores = counter("restores", "Sessions restored.", "result")
        self.saves = counter("saves", "Snapshots saved for other servers.", "result")
        self.cell_seconds = histogram("cell", "Run time of cells.")
        self.queue_seconds = histogram("queue", "Time that cells wait for earlier cells.")
        self.open_seconds = histogram("open", "Time to create a session.")
        self.restore_seconds = histogram("restore", "Time to restore a session.")

    def text(self) -> bytes:
        """Return the metrics in the exposition format."""
        return generate_latest(self._registry)
