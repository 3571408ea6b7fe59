"""Settings shared by all remote services."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from deepeyes_plugins.remote.retry import Backoff


class RemoteSettings(BaseModel):
    """Timeouts, retries and limits of requests; base of the settings of each service."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    timeout: float = Field(60.0, gt=0, description="Time limit of one request, in seconds.")
    connect_timeout: float = Field(
        10.0, gt=0, description="Time limit for opening a connection, in seconds."
    )
    retries: int = Field(
        5,
        ge=0,
        description="Retries after a failed connection, a timeout, HTTP 408, 425, 429 or 5xx, or "
        "an unreadable response.",
    )
    retry_wait: float = Field(
        0.5, ge=0, description="Seconds before the first retry; doubles with each retry."
    )
    retry_wait_maximum: float = Field(
        30.0, ge=0, description="Maximum seconds between attempts, whatever Retry-After says."
    )
    concurrency: int = Field(
        64, ge=1, description="Maximum concurrent requests to one server, per process."
    )
    rate: float | None = Field(
        None,
        gt=0,
        description="Maximum requests per second to one server, per process, in bursts of at most "
        "one second's requests. Unset: no limit.",
    )
    circuit_failures: int = Field(
        10,
        ge=1,
        description="Consecutive failures after which the circuit breaker opens for "
        "circuit_seconds; then one request probes the server.",
    )
    circuit_seconds: float = Field(
        15.0, ge=0, description="Seconds for which the circuit breaker stays open."
    )
    max_response_mb: float = Field(16.0, gt=0, description="Maximum size of a response, in MiB.")

    @property
    def backoff(self) -> Backoff:
        """Waiting times between attempts."""
        return Backoff(self.retry_wait, self.retry_wait_maximum, jitter=self.retry_wait)
