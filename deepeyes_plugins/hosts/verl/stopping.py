"""Early stop of a training run, requested by any of its processes.

verl has no such request: a trainer ends after its last step or with an exception. Here a request is
sent to a small named Ray actor that belongs to the trainer. The trainer
(:mod:`deepeyes_plugins.hosts.verl.trainer`) polls the actor before each step and while it waits for
samples, saves a checkpoint of the completed steps and raises :class:`RunStoppedError`, so that the
exit status is not 0. The same command resumes from the checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 10.0


class RunStoppedError(RuntimeError):
    """The run stopped early on request; the message says why."""


async def ask_to_stop(reason: str) -> bool:
    """Request that the training run of this process stops with a checkpoint.

    For agent loops and rewards, which run in other processes than the trainer. The current step is
    discarded, so call this before raising an error for its samples.

    Args:
        reason: What happened and what to do about it.

    Returns:
        Whether the request was delivered; if not, an error is logged. Nothing is raised.
    """
    try:
        if not ray.is_initialized():
            raise RuntimeError("Ray is not initialized in this process")
        actor = await asyncio.to_thread(lambda: ray.get_actor(_actor_name()))
        async with asyncio.timeout(_ANSWER_SECONDS):
            await actor.ask.remote(reason)
    except Exception as error:
        logger.error("the request to stop the run was not delivered (%s): %r", reason, error)
        return False
    return True


class StopRequests:
    """Stop requests as seen by the trainer; requests of its own process do not use Ray."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._actor: Any = None

    def open(self) -> None:
        """Start the actor that receives the requests of other processes."""
        try:
            actor = ray.remote(num_cpus=0)(_StopRequestActor)
            self._actor = actor.options(name=_actor_name(), get_if_exists=True).remote()
        except Exception:
            logger.warning("other processes cannot request a stop of this run", exc_info=True)

    def ask(self, reason: str) -> None:
        """Request a stop from the trainer's process."""
        self._reason = self._reason or reason

    def reason(self) -> str | None:
        """Return the reason of the first request, or ``None``. Takes about a millisecond."""
        if self._reason is None and self._actor is not None:
            try:
                self._reason = ray.get(self._actor.reason.remote(), timeout=_ANSWER_SECONDS)
            except ray.exceptions.GetTimeoutError:
                logger.warning("the actor for stop requests did not respond in time")
            except Exception:
                logger.warning(
                    "the actor for stop requests died; other processes can no longer request a "
                    "stop of this run",
                    exc_info=True,
                )
                self._actor = None
        return self._reason

    def close(self) -> None:
        """Stop the actor."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None


class _StopRequestActor:
    def __init__(self) -> None:
        self._reason: str | None = None

    def ask(self, reason: str) -> None:
        self._reason = self._reason or reason

    def reason(self) -> str | None:
        return self._reason


def _actor_name() -> str:
    """Return the actor's name; it contains the Ray job, so runs of a cluster are independent."""
    return f"deepeyes_stop_requests_{ray.get_runtime_context().get_job_id()}"
