"""SQLite file for caches: asynchronous access, recovery from a broken file."""

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

from deepeyes_plugins.files import owner_only, owner_only_folder

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_LOCKED_SECONDS = 10
"""Time to wait while another process locks the file."""


class SqliteFile:
    """A SQLite database in a file, which processes of one machine may share, or in memory.

    The connection belongs to a thread, since SQLite blocks. A killed process leaves the file as it
    was after the last complete statement. A file that is not a database is renamed.
    """

    def __init__(self, path: Path | None, schema: str) -> None:
        """Initialise without opening the file.

        Args:
            path: The file; ``None`` for memory.
            schema: Statements that create missing tables.
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
        """Call a function with the connection, in the thread of the file.

        Raises:
            sqlite3.Error: The database cannot be used.
            OSError: The folder cannot be created.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: function(self._opened(), *arguments, **keywords)
        )

    async def aclose(self) -> None:
        """Close the file; idempotent."""
        with contextlib.suppress(RuntimeError):  # Closed already.
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._path is not None:
                owner_only_folder(self._path.parent)
            try:
                self._connection = self._connect()
            except sqlite3.OperationalError:
                raise  # Locked, or a full disk: the file may be intact.
            except sqlite3.DatabaseError as error:
                if self._path is None:
                    raise
                renamed = self._path.with_suffix(f".broken-{int(time.time())}")
                self._path.rename(renamed)
                logger.warning("%s cannot be used (%s): renamed %s", self._path, error, renamed)
                self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        if self._path is not None:
            owner_only(self._path)
            for suffix in ("-wal", "-shm"):  # New ones get the file's mode.
                if (beside := self._path.with_name(f"{self._path.name}{suffix}")).exists():
                    owner_only(beside)
        connection = sqlite3.connect(
            self._path or ":memory:", timeout=_LOCKED_SECONDS, isolation_level=None
        )
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            # Survives a killed process; a power failure may lose the last entries.
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
