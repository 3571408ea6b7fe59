"""Errors of remote calls, which callers translate into errors of their own packages."""

from __future__ import annotations

from deepeyes_plugins.printable import printable
from deepeyes_plugins.remote.redaction import redact

OVERLOADED_STATUSES = frozenset({408, 425, 429})
"""HTTP statuses of a server that works but is overloaded; requests are retried."""


class RemoteError(Exception):
    """A remote call failed; the message names server and reason, without secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(redact(message)))


class RemoteUnavailableError(RemoteError):
    """The service failed; a retry may succeed.

    Attributes:
        status: The HTTP status; ``None`` if no response arrived.
        retry_after: Seconds to wait, as the service requests; 0 if it does not.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after: float = 0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class CircuitOpenError(RemoteUnavailableError):
    """Nothing was sent, since the circuit is open, for ``retry_after`` seconds."""


class RemoteRefusedError(RemoteError):
    """The service refuses the request; a retry does not help.

    Attributes:
        status: The HTTP status (401 and 403: the key; 402: the account; 404: URL or model); 0
            if the client refuses, for instance a response that is too large.
        text: Beginning of the response.
    """

    def __init__(self, message: str, *, status: int = 0, text: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.text = redact(text)
