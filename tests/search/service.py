"""``deepeyes search serve`` as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml


class Service:
    """A search service on a free port of loopback.

    Attributes:
        url: Its base URL.
        log: What it has logged so far.
    """

    def __init__(
        self,
        folder: Path,
        search: dict[str, Any],
        *command: str,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Say what to run.

        Args:
            folder: For agent.yaml and the response cache.
            search: The section ``search`` of agent.yaml.
            command: ``serve`` by default; or ``record FILE`` and the like.
            environment: Further variables.
        """
        config = folder / "agent.yaml"
        config.write_text(yaml.safe_dump({"search": search}))
        self._arguments = [
            *(sys.executable, "-m", "deepeyes_plugins.cli", "search", *(command or ("serve",))),
            *("--port", "0", "--config", str(config)),
        ]
        self._environment = os.environ | {"XDG_CACHE_HOME": str(folder)} | (environment or {})
        self.log: list[str] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._arguments, stderr=subprocess.PIPE, text=True, env=self._environment
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(line)
            if found := re.search(r"listens on (http://\S+)", line):
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(self.log))
        self._reader = threading.Thread(target=self.log.extend, args=(self._process.stderr,))
        self._reader.start()
        return self

    def kill(self) -> None:
        """End it as the kernel does when memory runs out."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
