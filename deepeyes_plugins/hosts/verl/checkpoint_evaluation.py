"""Evaluation of each checkpoint by ``deepeyes eval run``, in processes beside the training run.

verl calls ``trainer.checkpoint_callback_class`` in the trainer's process after each checkpoint and
waits for it, so the callback only starts a process. A thread waits for it, writes ``result.json``
of the step, and hands the scores to the trainer (:mod:`deepeyes_plugins.hosts.verl.trainer`), which
logs them with the metrics of the step that it is at. No failure of an evaluation ends the run.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.files import whole_file

logger = logging.getLogger(__name__)

METRICS = "deepeyes_eval"
"""Prefix of metric names: ``deepeyes_eval/<benchmark>``, and ``deepeyes_eval/step``."""
RESULT_FILE = "result.json"
DEEPEYES = (sys.executable, "-m", "deepeyes_plugins.cli")

_STOP_SECONDS = 60.0

Status = Literal["succeeded", "failed", "skipped", "stopped"]


class EvaluationSettings(BaseModel):
    """Section ``deepeyes.evaluation`` of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmarks: list[str] = Field(
        default_factory=list, description="VLMEvalKit's names (`--data`), for instance VStarBench."
    )
    arguments: list[str] = Field(
        default_factory=list,
        description="Further arguments of `deepeyes eval run`: --agent, --config, --judge, …",
    )
    serve: str = Field(
        "vllm serve {model} --port {port} --generation-config vllm",
        description="Command of the server of a checkpoint, on resources that the run does not "
        "use. {model} is its folder, {port} a free port.",
    )
    command: list[str] | None = Field(
        None,
        description="Another command, instead of all above, for instance of a job scheduler. "
        "{model}, {checkpoint}, {step} and {output} are filled in; results that VLMEvalKit "
        "leaves below {output} are read.",
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="Environment variables of server and evaluation. Ray hides all GPUs from the "
        "trainer's process, so name the spare ones: {CUDA_VISIBLE_DEVICES: '7'}.",
    )
    folder: Path | None = Field(
        None,
        description="Folder of the results. Unset: `evaluations` beside the checkpoints.",
    )
    concurrent: int = Field(1, ge=1, description="Evaluations at a time.")
    when_busy: Literal["queue", "skip", "replace"] = Field(
        "queue",
        description="At the next checkpoint while so many run: evaluate it afterwards, do not "
        "evaluate it, or stop the oldest running one.",
    )
    final_wait: float = Field(
        3600.0,
        ge=0,
        description="Seconds that a completed run waits for its last evaluations; the rest is "
        "stopped.",
    )


class EvaluateCheckpoints(CheckpointCallback):
    """verl's ``trainer.checkpoint_callback_class``, configured by ``deepeyes.evaluation``."""

    def __init__(self, config: Any) -> None:
        """Check the settings; verl creates the callback before it allocates GPUs.

        Raises:
            SettingsError: The section is missing or wrong.
        """
        super().__init__(config)
        recipe: Any = OmegaConf.to_container(config, resolve=True)
        self._settings = evaluation_settings(recipe)
        folder = Path(config.trainer.default_local_dir) / "evaluations"
        self._folder = (self._settings.folder or folder).resolve()
        self._pool = ThreadPoolExecutor(self._settings.concurrent, "evaluate checkpoint")
        self._running: dict[Future[None], _Evaluation] = {}
        self._scores: list[dict[str, float]] = []

    def on_save(
        self,
        trainer: Any,
        global_step: int,
        checkpoint_dir: str,
        async_save: bool = False,
        **kwargs: Any,
    ) -> None:
        """Start the evaluation of a checkpoint, or queue it."""
        try:
            if async_save:
                logger.warning(
                    "step %d is not evaluated: its checkpoint is still being written (async_save)",
                    global_step,
                )
            else:
                self._evaluate(global_step, Path(checkpoint_dir).resolve())
        except Exception:
            logger.warning("step %d cannot be evaluated", global_step, exc_info=True)

    def metrics(self) -> dict[str, float]:
        """Return the scores of the next finished evaluation, once; empty if there is none."""
        return self._scores.pop(0) if self._scores else {}

    def close(self, seconds: float | None = None) -> None:
        """Wait for the evaluations, and stop what is left.

        Args:
            seconds: Maximum seconds to wait; by default ``final_wait``.
        """
        limit = self._settings.final_wait if seconds is None else seconds
        if self._running and limit:
            steps = ", ".join(str(one.step) for one in self._running.values())
            logger.warning("waiting up to %g s for the evaluation of step %s", limit, steps)
        wait(list(self._running), limit)
        for evaluation in list(self._running.values()):
            evaluation.stop()
        self._pool.shutdown()

    def _evaluate(self, step: int, checkpoint: Path) -> None:
        evaluation = _Evaluation(self._settings, step, checkpoint, self._folder)
        if len(self._running) >= self._settings.concurrent:
            if self._settings.when_busy == "skip":
                logger.warning("step %d is not evaluated: another evaluation runs", step)
                evaluation.finish("skipped")
                return
            if self._settings.when_busy == "replace":
                next(iter(self._running.values())).stop()
        future = self._pool.submit(evaluation.run)
        self._running[future] = evaluation
        future.add_done_callback(self._finished)

    def _finished(self, future: Future[None]) -> None:
        evaluation = self._running.pop(future)
        if evaluation.scores:
            scores = {f"{METRICS}/{name}": score for name, score in evaluation.scores.items()}
            self._scores.append({**scores, f"{METRICS}/step": float(evaluation.step)})


class _Evaluation:
    """Evaluation of one checkpoint."""

    def __init__(
        self, settings: EvaluationSettings, step: int, checkpoint: Path, folder: Path
    ) -> None:
        self.step = step
        self.scores: dict[str, float] = {}
        self._output = folder / checkpoint.name
        self._log = self._output / "log.txt"
        self._command = command_of(settings, step, checkpoint, self._output)
        self._environment = {**os.environ, **settings.environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def run(self) -> None:
        """Run the commands of the evaluation and write its result."""
        try:
            status = self._call(self._command)
            if any(self._output.rglob("status.json")):  # VLMEvalKit's
                report = self._output / "report"
                show = [*DEEPEYES, "eval", "report", str(self._output), "--output", str(report)]
                if self._call(show) == 0:
                    self.scores = scores_of(report / "report.json")
            self.finish("stopped" if self._stopped else "failed" if status else "succeeded")
        except Exception as error:
            logger.warning("the evaluation of step %d failed: %r", self.step, error)

    def stop(self) -> None:
        """Stop the evaluation, or do not start it; its server ends, too."""
        with self._lock:
            self._stopped = True
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
                return

    def finish(self, status: Status) -> None:
        """Write the result."""
        result = {
            "step": self.step,
            "status": status,
            "scores": self.scores,
            "seconds": round(time.monotonic() - self._started, 1),
            "command": self._command,
        }
        self._output.mkdir(parents=True, exist_ok=True)
        with whole_file(self._output / RESULT_FILE) as partial:
            partial.write_text(json.dumps(result, indent=2), encoding="utf-8")
        say = logger.info if status == "succeeded" else logger.warning
        say("evaluation of step %d: %s, %s; log: %s", self.step, status, self.scores, self._log)

    def _call(self, command: Sequence[str]) -> int:
        """Run a command unless the evaluation is stopped, and return its exit status."""
        self._output.mkdir(parents=True, exist_ok=True)
        with self._lock, self._log.open("ab") as log:
            if self._stopped:
                return 1
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        return self._process.wait()


def evaluation_settings(recipe: Mapping[str, Any]) -> EvaluationSettings:
    """Read the section ``deepeyes.evaluation`` of a recipe.

    Raises:
        SettingsError: It is missing or wrong, or no model to evaluate is saved.
    """
    section = (recipe.get("deepeyes") or {}).get("evaluation")
    if section is None:
        raise SettingsError(
            "trainer.checkpoint_callback_class evaluates checkpoints, but the recipe has no "
            "section deepeyes.evaluation: name benchmarks there (docs/rl.md)"
        )
    try:
        settings = EvaluationSettings.model_validate(section)
    except ValidationError as error:
        reasons = "; ".join(
            f"deepeyes.evaluation.{'.'.join(map(str, reason['loc']))}: {reason['msg']}"
            for reason in error.errors()
        )
        raise SettingsError(f"wrong settings in the recipe: {reasons}") from error
    used = [settings.serve] if settings.command is None else settings.command
    saved = recipe["actor_rollout_ref"]["actor"]["checkpoint"]["save_contents"]
    if any("{model}" in part for part in used) and "hf_model" not in saved:
        raise SettingsError(
            "deepeyes.evaluation needs the model in Hugging Face's format: add hf_model to "
            f"actor_rollout_ref.actor.checkpoint.save_contents, which is {saved}"
        )
    return settings


def command_of(
    settings: EvaluationSettings, step: int, checkpoint: Path, output: Path
) -> list[str]:
    """Return the command that evaluates a checkpoint."""
    data = ["--data", *settings.benchmarks] if settings.benchmarks else []
    command = settings.command or [
        *("nice", *DEEPEYES, "eval", "run", "--serve", settings.serve),
        *("--trajectories", "{output}/trajectories", "--work-dir", "{output}"),
        *(*settings.arguments, *data),
    ]
    values = {
        "{model}": str(checkpoint / "actor/huggingface"),
        "{checkpoint}": str(checkpoint),
        "{step}": str(step),
        "{output}": str(output),
    }
    for name, value in values.items():
        command = [part.replace(name, value) for part in command]
    return command


def scores_of(report: Path) -> dict[str, float]:
    """Return the score of each benchmark in a report.json."""
    benchmarks = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    found = {
        one["name"]: one["accuracy"] if one["value"] is None else one["value"] for one in benchmarks
    }
    return {name: float(score) for name, score in found.items() if score is not None}
