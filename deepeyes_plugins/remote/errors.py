"""How a remote call fails. Rooms above turn these into what their callers know."""

from __future__ import annotations


class RemoteError(Exception):
    """A remote call did not succeed; the message names the server and the reason."""


class RemoteUnavailableError(RemoteError):
    """The service does not work at the moment: another attempt may succeed.

    Attributes:
        status: The HTTP status; ``None`` if no answer arrived.
        retry_after: Seconds that the service asks to be left alone; 0 if it does not say.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after: float = 0) -> None:
        """Say what happened."""
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class CircuitOpenError(RemoteUnavailableError):
    """Nothing was sent: the service failed too often just now; ``retry_after`` says how long."""


class RemoteRefusedError(RemoteError):
    """The service answered that it will not do this: asking again does not help.

    Attributes:
        status: The HTTP status (401 and 403: the key; 402: the account; 404: URL or model); 0
            where the refusal is ours, for instance of an answer that is too large.
        text: The beginning of what it said.
    """

    def __init__(self, message: str, *, status: int = 0, text: str = "") -> None:
        """Say what happened."""
        super().__init__(message)
        self.status = status
        self.text = text
