"""Computer algebra (math-verify) in a separate process with a timeout.

math-verify limits its time by signals, which work only in a main thread and not during C code
(``9**9**9`` takes hours). So it runs in a process that is killed after the timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from importlib.util import find_spec

from deepeyes_plugins.rewards.mathematics import mathematics_verdict

logger = logging.getLogger(__name__)

WORKER = "deepeyes_plugins.rewards.algebra_worker"
START_SECONDS = 60.0
"""Timeout for starting the process and importing SymPy on a busy machine."""


def available() -> bool:
    """Return whether math-verify is installed."""
    return find_spec("math_verify") is not None


class Algebra:
    """Client of math-verify, serial; its process starts with the first comparison."""

    def __init__(self) -> None:
        """Prepare a client; the process starts later."""
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def equal(self, answer: str, ground_truth: str, *, timeout: float) -> bool | None:
        """Return whether both are the same mathematical object.

        math-verify compares only pairs of expressions that it reads correctly; all else is compared
        by :mod:`deepeyes_plugins.rewards.values`.

        Args:
            answer: The model's answer.
            ground_truth: The reference.
            timeout: Seconds for the comparison, without waiting for earlier ones.

        Returns:
            Whether they are equal; ``None`` without expressions that it can parse, or after the
            timeout.
        """
        questions: list[tuple[str, str]] = []
        verdict = mathematics_verdict(answer, ground_truth, lambda *pair: questions.append(pair))
        if not questions:
            return verdict
        async with self._turn:
            try:
                return await self._ask(ground_truth, answer, timeout)
            except (TimeoutError, OSError, ValueError) as error:
                logger.debug("math-verify gave no verdict on %r: %r", answer, error)
                await self._kill()
                return None
            except asyncio.CancelledError:
                await self._kill()  # A late reply would be read as the next one's.
                raise

    async def aclose(self) -> None:
        """End the process."""
        await self._kill()

    async def _ask(self, truth: str, given: str, timeout: float) -> bool | None:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                WORKER,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            await self._exchange(self._process, ["1", "1"], START_SECONDS)
        return await self._exchange(self._process, [truth, given], timeout)

    async def _exchange(
        self, process: asyncio.subprocess.Process, pair: list[str], timeout: float
    ) -> bool | None:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(pair).encode() + b"\n")
        async with asyncio.timeout(timeout):
            await process.stdin.drain()
            reply = json.loads(await process.stdout.readline())  # Empty if the process died.
        return reply if isinstance(reply, bool) else None

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
