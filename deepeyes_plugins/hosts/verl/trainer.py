"""verl's trainers with what this package adds to a run, put into verl's own registry.

verl looks its trainer up by ``trainer.v1.trainer_mode`` in ``TRAINER_REGISTRY``. The same name
also steers what the trainer does, so a mode of our own would not be treated as sync or async;
therefore :func:`extend_trainers` puts a subclass in place of each class that is registered. It
overrides public methods (``fit``, ``step``, ``on_step_begin``), looks over the shoulder of the
replay buffer, and adds to what ``_validate`` returns: figures
(:mod:`deepeyes_plugins.hosts.verl.metrics`) and an early end
(:mod:`deepeyes_plugins.hosts.verl.stopping`). A run without a section ``deepeyes`` in its
configuration goes through unchanged.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer

from deepeyes_plugins.hosts.verl.judge_preflight import check_judge
from deepeyes_plugins.hosts.verl.metrics import RunWatch, watch_settings
from deepeyes_plugins.hosts.verl.stopping import RunStoppedError, StopRequests

logger = logging.getLogger(__name__)


def extend_trainers(module: ModuleType) -> None:
    """Put our subclasses into the registry; ``module`` is ``verl.trainer.ppo.v1``."""
    del module
    for name, trainer in TRAINER_REGISTRY.items():
        if not issubclass(trainer, DeepEyesTrainer):
            TRAINER_REGISTRY[name] = type(trainer.__name__, (DeepEyesTrainer, trainer), {})


class DeepEyesTrainer(PPOTrainer):
    """Logs figures of the agent, and ends cleanly when it is asked to."""

    def __init__(self, config: Any) -> None:
        """Make verl's trainer.

        The judge is tried first: no GPU is taken yet.

        Raises:
            SettingsError: The recipe's section ``deepeyes`` is wrong.
            JudgeUnavailableError: The judge does not work, or not well.
        """
        recipe: Any = OmegaConf.to_container(config, resolve=True)
        section = recipe.get("deepeyes")
        self._settings = None if section is None else watch_settings(section)
        if section is not None:
            check_judge(section.get("agent_config"))
        super().__init__(config)
        self._watch: RunWatch | None = None
        self._stop = StopRequests()
        self._first_step = self._completed_step = 0

    def fit(self, agent_loop_manager: Any) -> None:
        """Train.

        Raises:
            RunStoppedError: It was asked to end; a checkpoint of the complete steps is there.
        """
        if self._settings is None:
            super().fit(agent_loop_manager)
            return
        self._first_step = self._completed_step = self.global_steps
        self._watch = RunWatch(
            self._settings, Path(self.config.trainer.default_local_dir), self.tokenizer
        )
        self._stop.open()
        self._hook_replay_buffer(self._watch)
        try:
            super().fit(agent_loop_manager)
        except RunStoppedError as stop:
            stopped = RunStoppedError(f"{stop}. {self._save_complete_steps()}")
            logger.error("the run ends: %s", stopped)
            raise stopped from stop
        finally:
            self._stop.close()
            self._watch.close()

    def on_step_begin(self) -> None:
        """End here if that was asked for: the step before is complete and logged."""
        self._end_if_asked()
        super().on_step_begin()

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> Any:
        """Train one step and look at its samples."""
        batch = super().step(metrics, timing_raw)
        self._completed_step = self.global_steps
        if self._watch is not None:
            expected = self.config.data.train_batch_size * self.config.actor_rollout_ref.rollout.n
            figures, reason = self._watch.trained(self.global_steps, batch, expected)
            metrics.update(figures)
            if reason is not None:
                self._stop.ask(reason)
        return batch

    def _validate(self) -> dict[str, float]:
        metrics: dict[str, float] = super()._validate()
        if self._watch is not None:
            metrics.update(self._watch.validated())
        return metrics

    def _end_if_asked(self, cause: Exception | None = None) -> None:
        reason = self._stop.reason()
        if reason is not None:
            raise RunStoppedError(reason) from cause

    def _hook_replay_buffer(self, watch: RunWatch) -> None:
        """See validation samples, and requests to stop while samples are waited for."""
        buffer = self.replay_buffer
        sample, wait = buffer.sample, getattr(buffer, "_wait_for_next_poll", None)

        def watched_sample(*arguments: Any, **keywords: Any) -> Any:
            try:
                batch, metrics = sample(*arguments, **keywords)
            except RuntimeError as error:
                self._end_if_asked(error)  # Where all samples failed, it is why.
                raise
            self._end_if_asked()
            if batch.partition_id == "val":
                watch.record_validation(batch)
            return batch, metrics

        buffer.sample = watched_sample
        if wait is None:  # A custom sampler may wait in its own way.
            return

        def watched_wait(*arguments: Any) -> Any:
            self._end_if_asked()
            return wait(*arguments)

        buffer._wait_for_next_poll = watched_wait

    def _save_complete_steps(self) -> str:
        """Save what verl's schedule has not saved yet, and say what is there.

        The questions of a step that was given up are not asked again in the same epoch. With
        ``parameter_sync_step`` above 1, weights hold the updates of its first parts.
        """
        step, frequency = self._completed_step, self.config.trainer.save_freq
        if step == self._first_step:
            return "No step was completed since it started, so there is nothing new to save."
        where = f"Step {step} is saved in {self.config.trainer.default_local_dir}"
        if not (frequency > 0 and step % frequency == 0):
            # Saving needs the memory that the engines hold, as in verl's own order of things.
            for free in ("abort_replicas", "sleep_replicas"):
                try:
                    getattr(self.checkpoint_manager, free)()
                except Exception:
                    logger.warning("%s failed before the checkpoint", free, exc_info=True)
            self.global_steps = step
            try:
                self._save_checkpoint()
            except Exception as error:
                logger.exception("the checkpoint of step %d cannot be saved", step)
                return f"Step {step} cannot be saved ({error!r}): resume from an earlier one."
        return f"{where}; the same command resumes there."
