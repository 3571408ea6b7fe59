"""Extended verl trainers: agent metrics, scores of checkpoints, judge preflight and early stop.

verl looks up its trainer in ``TRAINER_REGISTRY`` by ``trainer.v1.trainer_mode``. The mode also
controls the trainer's behaviour, so a new mode name would not be treated as sync or async;
therefore :func:`extend_trainers` replaces each registered class by a subclass. The subclass
overrides public methods (``fit``, ``step``, ``on_step_begin``), hooks into the replay buffer, and
extends the result of ``_validate`` by metrics (:mod:`deepeyes_plugins.hosts.verl.metrics`) and an
early stop (:mod:`deepeyes_plugins.hosts.verl.stopping`). Runs without a section ``deepeyes`` in
their configuration are unchanged.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer

from deepeyes_plugins.hosts.verl.checkpoint_evaluation import EvaluateCheckpoints
from deepeyes_plugins.hosts.verl.judge_preflight import check_judge
from deepeyes_plugins.hosts.verl.metrics import RunWatch, log_failures, watch_settings
from deepeyes_plugins.hosts.verl.stopping import RunStoppedError, StopRequests

logger = logging.getLogger(__name__)


def extend_trainers(module: ModuleType) -> None:
    """Replace the registered trainers by subclasses; ``module`` is ``verl.trainer.ppo.v1``."""
    del module
    for name, trainer in TRAINER_REGISTRY.items():
        if not issubclass(trainer, DeepEyesTrainer):
            TRAINER_REGISTRY[name] = type(trainer.__name__, (DeepEyesTrainer, trainer), {})


class DeepEyesTrainer(PPOTrainer):
    """Trainer with agent metrics and early stop."""

    def __init__(self, config: Any) -> None:
        """Test the judge, then create verl's trainer, which allocates GPUs.

        Raises:
            SettingsError: The recipe's section ``deepeyes`` is wrong.
            JudgeUnavailableError: The judge does not respond or judges test cases wrongly.
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
            RunStoppedError: A stop was requested; the completed steps are in a checkpoint.
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
        patience: float | None = 0.0
        try:
            super().fit(agent_loop_manager)
            patience = None
        except RunStoppedError as stop:
            stopped = RunStoppedError(f"{stop}. {self._save_complete_steps()}")
            logger.error("the run stops: %s", stopped)
            patience = None
            raise stopped from stop
        finally:
            self._end_evaluations(patience)
            self._stop.close()
            self._watch.close()

    def on_step_begin(self) -> None:
        """Stop on request; the previous step is complete and logged."""
        self._stop_if_requested()
        super().on_step_begin()

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> Any:
        """Train one step and process its samples."""
        batch = super().step(metrics, timing_raw)
        self._completed_step = self.global_steps
        if self._watch is not None:
            expected = self.config.data.train_batch_size * self.config.actor_rollout_ref.rollout.n
            own_metrics, reason = self._watch.trained(self.global_steps, batch, expected)
            metrics.update(own_metrics)
            if reason is not None:
                self._stop.ask(reason)
        if isinstance(self.checkpoint_callback, EvaluateCheckpoints):
            metrics.update(self.checkpoint_callback.metrics())
        return batch

    def _end_evaluations(self, patience: float | None) -> None:
        """Wait for evaluations of checkpoints, and log the scores that no step has logged."""
        if isinstance(self.checkpoint_callback, EvaluateCheckpoints):
            with log_failures("the scores of checkpoints"):
                self.checkpoint_callback.close(patience)
                while scores := self.checkpoint_callback.metrics():
                    self.logger.log(data=scores, step=self._completed_step)

    def _validate(self) -> dict[str, float]:
        metrics: dict[str, float] = super()._validate()
        if self._watch is not None:
            metrics.update(self._watch.validated())
        return metrics

    def _stop_if_requested(self, cause: Exception | None = None) -> None:
        reason = self._stop.reason()
        if reason is not None:
            raise RunStoppedError(reason) from cause

    def _hook_replay_buffer(self, watch: RunWatch) -> None:
        """Process validation samples, and stop requests while the trainer waits for samples."""
        buffer = self.replay_buffer
        sample, wait = buffer.sample, getattr(buffer, "_wait_for_next_poll", None)

        def watched_sample(*arguments: Any, **keywords: Any) -> Any:
            try:
                batch, metrics = sample(*arguments, **keywords)
            except RuntimeError as error:
                self._stop_if_requested(error)  # A stop request explains why all samples failed.
                raise
            self._stop_if_requested()
            if batch.partition_id == "val":
                watch.record_validation(batch)
            return batch, metrics

        buffer.sample = watched_sample
        if wait is None:  # A custom sampler may wait differently.
            return

        def watched_wait(*arguments: Any) -> Any:
            self._stop_if_requested()
            return wait(*arguments)

        buffer._wait_for_next_poll = watched_wait

    def _save_complete_steps(self) -> str:
        """Save completed steps that verl's schedule has not saved, and describe the checkpoint.

        The prompts of a discarded step are not repeated in the same epoch. With
        ``parameter_sync_step`` above 1, the weights include the updates of its first parts.
        """
        step, frequency = self._completed_step, self.config.trainer.save_freq
        if step == self._first_step:
            return "No step was completed since the start, so there is nothing new to save."
        where = f"Step {step} is saved in {self.config.trainer.default_local_dir}"
        if not (frequency > 0 and step % frequency == 0):
            # Saving needs the engines' memory, so free it first, as verl does.
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
        return f"{where}; the same command resumes from it."
