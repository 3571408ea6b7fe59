"""Ask a training run to end early, from any of its processes.

verl has no such request of its own: a trainer ends after its last step or by an exception. Here a
request goes to a board, a small named Ray actor that the trainer of the run holds; the trainer
(:mod:`deepeyes_plugins.hosts.verl.trainer`) looks at it before each step and while it waits for
samples, saves a checkpoint of the steps that are complete and ends with
:class:`RunStoppedError`, so that the command's exit status is not 0. The next start of the
same command resumes from there.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 10.0


class RunStoppedError(RuntimeError):
    """The run ended early because that was asked for; the message says by whom and why."""


async def ask_to_stop(reason: str) -> bool:
    """Have the training run of this process end, with a checkpoint of its complete steps.

    For agent loops and rewards, which run in processes other than the trainer's. The step that is
    under way is given up, so ask before failing the samples that cannot be had.

    Args:
        reason: What happened and what to do about it, for the person who starts the run again.

    Returns:
        Whether the trainer will know; if not, an error is logged. Nothing is raised.
    """
    try:
        if not ray.is_initialized():
            raise RuntimeError("this process belongs to no run")
        board = await asyncio.to_thread(lambda: ray.get_actor(_board_name()))
        async with asyncio.timeout(_ANSWER_SECONDS):
            await board.ask.remote(reason)
    except Exception as error:
        logger.error("the training run cannot be asked to stop (%s): %r", reason, error)
        return False
    return True


class StopRequests:
    """The trainer's side of the board; requests of its own process need no Ray."""

    def __init__(self) -> None:
        """Make it; nothing is started."""
        self._reason: str | None = None
        self._board: Any = None

    def open(self) -> None:
        """Put up the board; without it, requests of other processes do not arrive."""
        try:
            board = ray.remote(num_cpus=0)(_Board)
            self._board = board.options(name=_board_name(), get_if_exists=True).remote()
        except Exception:
            logger.warning("no other process can ask this run to stop", exc_info=True)

    def ask(self, reason: str) -> None:
        """Ask from within the trainer's process."""
        self._reason = self._reason or reason

    def reason(self) -> str | None:
        """Return the first request's reason, if there was a request. Takes about a millisecond."""
        if self._reason is None and self._board is not None:
            try:
                self._reason = ray.get(self._board.reason.remote(), timeout=_ANSWER_SECONDS)
            except ray.exceptions.GetTimeoutError:
                logger.warning("the board for stop requests does not answer at the moment")
            except Exception:
                logger.warning(
                    "the board for stop requests is gone; no other process can ask this run to "
                    "stop any more",
                    exc_info=True,
                )
                self._board = None
        return self._reason

    def close(self) -> None:
        """Take the board down."""
        if self._board is not None:
            ray.kill(self._board)
            self._board = None


class _Board:
    def __init__(self) -> None:
        self._reason: str | None = None

    def ask(self, reason: str) -> None:
        self._reason = self._reason or reason

    def reason(self) -> str | None:
        return self._reason


def _board_name() -> str:
    """Name of the board of this Ray job: runs that share a cluster do not stop each other."""
    return f"deepeyes_stop_board_{ray.get_runtime_context().get_job_id()}"
