"""Calls to other people's servers: time limits, retries, circuit breakers, limits, counters."""

from deepeyes_plugins.remote.circuit import Circuit
from deepeyes_plugins.remote.errors import (
    CircuitOpenError,
    RemoteError,
    RemoteRefusedError,
    RemoteUnavailableError,
)
from deepeyes_plugins.remote.service import RemoteService, Reply
from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.remote.statistics import CallSnapshot, CallStatistics

__all__ = [
    "CallSnapshot",
    "CallStatistics",
    "Circuit",
    "CircuitOpenError",
    "RemoteError",
    "RemoteRefusedError",
    "RemoteService",
    "RemoteSettings",
    "RemoteUnavailableError",
    "Reply",
]
