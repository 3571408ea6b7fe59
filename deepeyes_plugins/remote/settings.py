"""What the settings of every remote service have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class RemoteSettings(BaseModel):
    """How a service is called; a base class for the settings of one kind of service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    timeout: float = Field(60.0, gt=0, description="Seconds that one request may take.")
    connect_timeout: float = Field(10.0, gt=0, description="Seconds to open a connection.")
    retries: int = Field(
        5,
        ge=0,
        description="Further attempts after a failed connection, a time-out, HTTP 408, 425, 429 or "
        "5xx, or an answer that cannot be read.",
    )
    retry_wait: float = Field(
        0.5, ge=0, description="Seconds before the first further attempt; doubles each time."
    )
    retry_wait_maximum: float = Field(
        30.0, ge=0, description="Seconds between attempts at most, whatever Retry-After says."
    )
    concurrency: int = Field(
        64, ge=1, description="Requests to one server at a time, per process; more wait their turn."
    )
    rate: float | None = Field(
        None,
        gt=0,
        description="Requests per second to one server, per process; after a pause, those of one "
        "second go at once. Unset: no limit.",
    )
    circuit_failures: int = Field(
        10,
        ge=1,
        description="Failures in a row after which a server is left alone for circuit_seconds; "
        "then one request tries whether it is back.",
    )
    circuit_seconds: float = Field(
        15.0, ge=0, description="Seconds for which a server that keeps failing is left alone."
    )
    max_response_mb: float = Field(16.0, gt=0, description="Largest answer that is read, in MiB.")
