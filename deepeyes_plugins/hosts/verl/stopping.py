"""Ending a run from within, with a checkpoint.

verl has no such thing. A reward function or an agent loop that raises costs its trajectory: the
group is marked as failed, and the trainer goes on with what is left, or with other prompts. So who
wants the run to end leaves a note, a named Ray actor, which the replay buffer finds. That is the
one place of ours in the trainer's process, and where the trainer waits whenever trajectories are
late: between two updates of the weights, so that what it saves is the end of a step.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer as _Base
else:
    _Base = object

logger = logging.getLogger(__name__)

_NOTE = "deepeyes_stop_request"
_TRACKER = "latest_checkpointed_iteration.txt"
"""verl's file with the number of the latest step that was saved."""


class RunStoppedError(RuntimeError):
    """The run was asked to stop; the message says why, and what was saved."""


class _Note:
    def __init__(self, reason: str) -> None:
        self._reason = reason

    def reason(self) -> str:
        return self._reason


async def ask_to_stop(reason: str) -> None:
    """Ask the trainer of this Ray job to save a checkpoint and stop.

    When it returns the trainer will see it before it sees anything that happens later. The first
    reason stays. Outside of Ray there is nobody to ask, and only a log line.
    """
    logger.error("the run is asked to stop: %s", reason)
    if ray.is_initialized():
        note = ray.remote(num_cpus=0)(_Note).options(name=_NOTE, get_if_exists=True).remote(reason)
        await note.reason.remote()


def stop_request() -> str | None:
    """Return why the run was asked to stop; ``None`` if it was not. Takes a millisecond."""
    try:
        note = ray.get_actor(_NOTE)
    except ValueError:
        return None
    return ray.get(note.reason.remote())


class StopsOnRequest(_Base):
    """Base of replay buffers, before verl's own: it heeds :func:`ask_to_stop`."""

    _validating = False

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, Any]:
        """Sample as verl does, unless the run is to stop."""
        self._validating = partition_id == "val"
        return super().sample(global_steps, partition_id, batch_size)

    def _sync_metadata_from_transfer_queue(self) -> None:
        """Look for a request wherever verl looks for trajectories.

        Raises:
            RunStoppedError: There is one; finished steps have been saved if that was possible.
        """
        super()._sync_metadata_from_transfer_queue()
        reason = stop_request()
        if reason is not None:
            # verl hands us a method of its trainer; it is the only way to it.
            trainer = getattr(self.refill_fn, "__self__", None)
            raise RunStoppedError(f"{reason}. {save_finished_steps(trainer, self._validating)}")


def save_finished_steps(trainer: Any, validating: bool) -> str:
    """Save a checkpoint of the last step that is complete, if there is none yet.

    Args:
        trainer: verl's ``PPOTrainer``, while it waits for trajectories.
        validating: It waits for those of a validation, which comes at the end of a step.

    Returns:
        What was done, in a sentence. A failure is logged and said, never raised.
    """
    try:
        finished = trainer.global_steps if validating else trainer.global_steps - 1
        folder = Path(os.path.abspath(trainer.config.trainer.default_local_dir))
        where = folder / f"global_step_{finished}"
        if finished < 1:
            return "No step was complete, so nothing was saved."
        if _latest(folder) != finished:
            trainer.on_sample_end()  # Engines that share the GPUs give their memory back.
            trainer.global_steps = finished
            trainer._save_checkpoint()
    except Exception as error:
        logger.exception("no checkpoint could be saved")
        return f"No checkpoint could be saved ({error!r}): resume from an earlier one."
    return f"Step {finished} is saved in {where}; the same command resumes there."


def _latest(folder: Path) -> int | None:
    try:
        return int((folder / _TRACKER).read_text())
    except (OSError, ValueError):
        return None
