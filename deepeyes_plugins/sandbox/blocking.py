"""The client for code without an event loop: scripts, notebooks and threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from deepeyes_plugins.sandbox.client import SandboxClient, SandboxSession
from deepeyes_plugins.sandbox.contracts import ExecutionResult, Health

T = TypeVar("T")


class _Loop:
    """An event loop in a thread of its own, which keeps no program from ending."""

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
        """Give up what other threads still wait for, does the last thing, and ends the thread."""

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
    """``SandboxClient`` without await. Use it from as many threads as you like.

    Its event loop runs in a thread of its own, so that it works in a notebook too.

    Example:
        with BlockingSandboxClient(url) as client, client.create_session([png]) as session:
            result = session.execute("image_1.size", timeout=10)
    """

    def __init__(
        self, urls: str | Sequence[str], *, token: str | None = None, timeout: float = 120.0
    ) -> None:
        """Prepare a client; connects on first use.

        Args:
            urls: Base URLs of the servers; a string may hold several, separated by commas.
            token: Bearer token; by default the one in $DEEPEYES_TOKEN_SANDBOX, if set.
            timeout: Seconds that anything but running a cell may take.

        Raises:
            SandboxError: There is no URL, or one that is wrong.
        """
        self._client = SandboxClient(urls, token=token, timeout=timeout)
        self._loop = _Loop()

    @property
    def urls(self) -> tuple[str, ...]:
        """Base URLs of the servers, those of this machine first."""
        return self._client.urls

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; sessions live on at the server until closed or idle."""
        self._loop.close(self._client.close())

    def health(self) -> Health:
        """Ask how the server is; of several, the first that answers.

        Raises:
            SandboxUnavailable: None answers.
        """
        return self._loop.call(self._client.health())

    def create_session(self, images: Sequence[bytes] = ()) -> BlockingSandboxSession:
        """Open a session.

        Args:
            images: Encoded image files (PNG, JPEG, WebP, ...), which the session's code sees as
                the PIL images image_1, image_2, and so on.

        Raises:
            SandboxUnavailable: No server can be reached and takes one more session.
            SandboxError: A server refuses an image or the request.
        """
        session = self._loop.call(self._client.create_session(images))
        return BlockingSandboxSession(session, self._loop)


class BlockingSandboxSession:
    """``SandboxSession`` without await. Cells run one after another and share their variables."""

    def __init__(self, session: SandboxSession, loop: _Loop) -> None:
        """Wrap a session; ``BlockingSandboxClient.create_session`` makes one."""
        self._session = session
        self._loop = loop

    @property
    def id(self) -> str:
        """The server's name for the session."""
        return self._session.id

    @property
    def server(self) -> str:
        """Base URL of the server that the session is on."""
        return self._session.server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def execute(self, code: str, timeout: float) -> ExecutionResult:
        """Run one cell, after those that were given before; see ``SandboxSession.execute``.

        Args:
            code: Python source, as in a Jupyter cell.
            timeout: Seconds after which the cell is interrupted.

        Returns:
            What the code did, also when it failed, hung or killed its process.

        Raises:
            SandboxUnavailable: The session's server did not answer, and no other one either.
        """
        return self._loop.call(self._session.execute(code, timeout=timeout))

    def interrupt(self) -> None:
        """Interrupt the running cell, if there is one; call it from another thread.

        Raises:
            SandboxUnavailable: The session's server did not answer.
        """
        self._loop.call(self._session.interrupt())

    def evict(self) -> None:
        """Put the session away until its next cell, after its running one: it frees its memory.

        Raises:
            SandboxUnavailable: The session's server did not answer, or cannot put it away now.
        """
        self._loop.call(self._session.evict())

    def close(self) -> None:
        """End the session, also in the middle of a cell; does nothing the second time."""
        self._loop.call(self._session.close())
