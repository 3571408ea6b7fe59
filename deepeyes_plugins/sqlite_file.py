"""A SQLite file for what may be lost but not be wrong: kept answers, shared verdicts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_LOCKED_SECONDS = 10
"""How long another process may hold the file."""


class SqliteFile:
    """A file that processes of one machine may share, or memory.

    SQLite blocks, so that a thread of its own has the connection. A killed process leaves the file
    as it was after the last whole statement; one that is no database is moved aside.
    """

    def __init__(self, path: Path | None, schema: str) -> None:
        """Hold the settings; nothing is opened yet.

        Args:
            path: The file; ``None`` for memory.
            schema: Statements that make the tables where they are missing.
        """
        self._path = path
        self._schema = schema
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deepeyes-sqlite")
        self._connection: sqlite3.Connection | None = None

    async def run(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *arguments: P.args,
        **keywords: P.kwargs,
    ) -> T:
        """Call a function with the connection, in the thread.

        Raises:
            sqlite3.Error: The file cannot be used.
            OSError: Its folder cannot be made.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: function(self._opened(), *arguments, **keywords)
        )

    async def aclose(self) -> None:
        """Close the file; idempotent."""
        with contextlib.suppress(RuntimeError):  # It was closed before.
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = self._connect()
            except sqlite3.OperationalError:
                raise  # Locked, or a full disk: the file may be good.
            except sqlite3.DatabaseError as error:
                if self._path is None:
                    raise
                aside = self._path.with_suffix(f".broken-{int(time.time())}")
                self._path.rename(aside)
                logger.warning("%s cannot be used (%s): moved to %s", self._path, error, aside)
                self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path or ":memory:", timeout=_LOCKED_SECONDS, isolation_level=None
        )
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            # Safe against a killed process; a lost power supply may cost the last entries.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(self._schema)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
