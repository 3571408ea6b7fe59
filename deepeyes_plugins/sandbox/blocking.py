"""Synchronous client of the sandbox, for scripts, notebooks and threads."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, Self, TypeVar

from deepeyes_plugins.sandbox.client import SandboxClient, SandboxSession
from deepeyes_plugins.sandbox.contracts import ExecutionResult, Health

T = TypeVar("T")


class _Loop:
    """Event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="sandbox client", daemon=True
        )
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("this sandbox client was closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancel pending calls of other threads, run a last coroutine, and end the thread."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await last

        if self._loop.is_closed():
            last.close()
            return
        self.call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class BlockingSandboxClient:
    """Synchronous ``SandboxClient``. It is thread-safe.

    Its event loop runs in a thread of its own, so that it works in notebooks too.

    Example:
        with BlockingSandboxClient(url) as client, client.create_session([png]) as session:
            result = session.execute("image_1.size", timeout=10)
    """

    def __init__(
        self, urls: str | Sequence[str], *, token: str | None = None, timeout: float = 120.0
    ) -> None:
        """Initialize the client; it connects on first use.

        Args:
            urls: Base URLs of the servers; a string may hold several, separated by commas.
            token: Bearer token; by default the one in $DEEPEYES_TOKEN_SANDBOX, if set.
            timeout: Time limit in seconds of every request except for running a cell.

        Raises:
            SandboxError: There is no URL, or one is invalid.
        """
        self._client = SandboxClient(urls, token=token, timeout=timeout)
        self._loop = _Loop()
        atexit.register(self.close)  # For scripts that do not.

    @property
    def urls(self) -> tuple[str, ...]:
        """Base URLs of the servers, those on this machine first."""
        return self._client.urls

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; open sessions stay on the server until they time out."""
        atexit.unregister(self.close)
        self._loop.close(self._client.close())

    def health(self) -> Health:
        """Return the health of the first server that responds.

        Raises:
            SandboxUnavailable: No server responds.
        """
        return self._loop.call(self._client.health())

    def create_session(self, images: Sequence[bytes] = ()) -> BlockingSandboxSession:
        """Create a session.

        Args:
            images: Encoded image files (PNG, JPEG, WebP, ...). The session's code sees them as the
                PIL images ``image_1``, ``image_2``, and so on.

        Raises:
            SandboxUnavailable: No server can be reached and has room for the session.
            SandboxError: A server rejects an image or the request.
        """
        session = self._loop.call(self._client.create_session(images))
        return BlockingSandboxSession(session, self._loop)


class BlockingSandboxSession:
    """Synchronous ``SandboxSession``. Cells run one after another and share their variables."""

    def __init__(self, session: SandboxSession, loop: _Loop) -> None:

        self._session = session
        self._loop = loop

    @property
    def id(self) -> str:
        """Session ID."""
        return self._session.id

    @property
    def server(self) -> str:
        """Base URL of the session's server."""
        return self._session.server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def execute(self, code: str, timeout: float) -> ExecutionResult:
        """Run a cell after all earlier ones; see ``SandboxSession.execute``.

        Args:
            code: Python source, as in a Jupyter cell.
            timeout: Seconds after which the cell is interrupted.

        Returns:
            The result, also if the code failed, hung or killed its process.

        Raises:
            SandboxUnavailable: Neither the session's server nor any other responds.
        """
        return self._loop.call(self._session.execute(code, timeout=timeout))

    def interrupt(self) -> None:
        """Interrupt the running cell, if any; call it from another thread.

        Raises:
            SandboxUnavailable: The session's server does not respond.
        """
        self._loop.call(self._session.interrupt())

    def evict(self) -> None:
        """Evict the session after its running cell: its memory is free until its next cell.

        Raises:
            SandboxUnavailable: The session's server does not respond, or cannot evict it now.
        """
        self._loop.call(self._session.evict())

    def close(self) -> None:
        """End the session, even during a cell; idempotent."""
        self._loop.call(self._session.close())
