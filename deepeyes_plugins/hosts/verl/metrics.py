"""Agent metrics in verl's loggers, the alarm about tool use and samples for RL Logging Board.

Each sample has a small record in verl's TransferQueue (:mod:`deepeyes_plugins.hosts.verl.output`).
After a step, :class:`RunWatch` reads the records of exactly the samples that were trained on
(without padding), computes the metrics over all of them, so that percentiles are exact, and adds
them to the dictionary that verl passes to its loggers: console, file, tensorboard, wandb and
others. Validation works in the same way.

Rejected alternatives: a custom sampler (``trainer.v1.sampler.custom_sampler``) can return metrics,
but verl drops them in validation, and it disables verl's filtering and refilling; a wrapper of
``Tracking.log`` sees numbers but not samples.

Failures in this module are logged as warnings and never fail a step. ``deepeyes.metrics: false``
disables the metrics.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tensordict import NonTensorData

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.files import whole_file
from deepeyes_plugins.hosts.verl.advantage import has_spread
from deepeyes_plugins.hosts.verl.logging_board import BoardSample, LoggingBoard
from deepeyes_plugins.hosts.verl.output import SAMPLE_FIELD
from deepeyes_plugins.protocol.missing import text_of
from deepeyes_plugins.rollout.collapse import CallHistory, CollapseSettings
from deepeyes_plugins.rollout.log import BackgroundWriter
from deepeyes_plugins.rollout.metrics import MetricsAggregator, SampleRecord, mean

logger = logging.getLogger(__name__)

TRAINING = "deepeyes"
VALIDATION = "deepeyes_val"
"""Prefixes of metric names: ``deepeyes/<data source>/<metric>``."""

HISTORY_FILE = "deepeyes_tool_calls.json"
"""File beside the checkpoints with what the alarm compares of each step, for resumed runs."""

_FLUSH_SECONDS = 30.0

_BOARD_FIELDS = (
    "prompts",
    "responses",
    "response_mask",
    "old_log_probs",
    "ref_log_prob",
    "values",
    "token_level_rewards",
    "rm_scores",
    "reward_model",
    "data_source",
)


class WatchSettings(BaseModel):
    """Monitoring settings of the recipe's section ``deepeyes``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metrics: bool = Field(True, description="Log metrics of the agent with verl's own.")
    logging_board: Path | None = Field(
        None, description="Folder for samples in the format of RL Logging Board; unset: none."
    )
    logging_board_samples: int = Field(
        32,
        ge=1,
        description="Samples per step for RL Logging Board, in whole groups; the viewer keeps all "
        "of them in memory.",
    )
    alarm: CollapseSettings = Field(
        default_factory=CollapseSettings,
        description="The alarm about tool use that collapses or runs away.",
    )


def watch_settings(section: Mapping[str, Any]) -> WatchSettings:
    """Read the monitoring settings of the recipe's section ``deepeyes``.

    Raises:
        SettingsError: A value is wrong; the message names the key.
    """
    own = {key: section[key] for key in WatchSettings.model_fields if section.get(key) is not None}
    try:
        return WatchSettings.model_validate(own)
    except ValidationError as error:
        reasons = "; ".join(
            f"deepeyes.{'.'.join(map(str, reason['loc']))}: {reason['msg']}"
            for reason in error.errors()
        )
        raise SettingsError(f"wrong settings in the recipe: {reasons}") from error


class RunWatch:
    """Monitors a training run in the trainer's process."""

    def __init__(self, settings: WatchSettings, folder: Path, tokenizer: Any) -> None:
        """Create the monitor; files are opened with the first step.

        Args:
            settings: Monitoring settings.
            folder: Folder of the run (``trainer.default_local_dir``).
            tokenizer: The policy's tokenizer.
        """
        self._settings = settings
        self._training = MetricsAggregator()
        self._validation = MetricsAggregator()
        self._validation_samples: list[SampleRecord] = []
        self._board: LoggingBoard | None = None
        if settings.logging_board is not None:
            self._board = LoggingBoard(settings.logging_board, tokenizer)
        self._history_file = folder / HISTORY_FILE
        self._history: CallHistory | None = None
        self._writer = BackgroundWriter("tool calls by step")

    def trained(self, step: int, batch: Any, expected: int) -> tuple[dict[str, float], str | None]:
        """Process the samples of a training step.

        Args:
            step: The training step.
            batch: verl's keys of its samples, whose fields are still in the TransferQueue.
            expected: Number of samples that the step should have had.

        Returns:
            Metrics for verl's loggers, and the reason to stop the run, or ``None``.
        """
        started = time.perf_counter()
        metrics: dict[str, float] = {}
        reason: str | None = None
        if self._settings.metrics or self._settings.alarm.enabled:
            with log_failures("the metrics of the step"):
                keys = sample_keys(batch)
                samples = read_records(keys, batch.partition_id)
                if self._settings.metrics:
                    metrics |= named(TRAINING, self._training.of(samples))
                    metrics[f"{TRAINING}/samples_left_out"] = 1 - len(samples) / expected
                    metrics |= named(TRAINING, groups_without_spread(keys, samples))
                if self._settings.alarm.enabled and samples:
                    reason = self._check_tool_use(step, samples)
        if self._board is not None:
            with log_failures("the samples for the logging board"):
                keys = whole_groups(sample_keys(batch), self._settings.logging_board_samples)
                self._board.log(step, read_board_samples(keys, batch.partition_id))
        if self._settings.metrics:
            metrics["timing_s/deepeyes_figures"] = time.perf_counter() - started
        return metrics, reason

    def record_validation(self, batch: Any) -> None:
        """Store the records of validation samples before verl deletes them."""
        if self._settings.metrics:
            with log_failures("records of validation samples"):
                self._validation_samples += read_records(sample_keys(batch), batch.partition_id)

    def validated(self) -> dict[str, float]:
        """Return the metrics of the completed validation."""
        samples, self._validation_samples = self._validation_samples, []
        with log_failures("the metrics of the validation"):
            return named(VALIDATION, self._validation.of(samples))
        return {}

    def close(self) -> None:
        """Wait for queued writes, up to a time limit."""
        for writer in (self._writer, self._board.writer if self._board else None):
            if writer is not None and not writer.flush(_FLUSH_SECONDS):
                logger.warning("some %s were not written", writer.name)

    def _check_tool_use(self, step: int, samples: Sequence[SampleRecord]) -> str | None:
        if self._history is None:
            self._history = CallHistory(self._settings.alarm, read_history(self._history_file))
        calls = Counter(call.tool for sample in samples for call in sample.tool_calls)
        scores = [sample.rewards.get("acc", sample.rewards.get("score")) for sample in samples]
        known = [score for score in scores if score is not None]
        found = self._history.add(
            step,
            {tool: count / len(samples) for tool, count in calls.items()},
            limit_endings=mean(sample.end_reason.is_limit for sample in samples),
            accuracy=mean(known) if known else None,
        )
        self._writer.submit(
            partial(write_history, self._history_file, json.dumps(self._history.calls))
        )
        if not found:
            return None
        names, advice = (
            dict.fromkeys(texts)
            for texts in zip(*((one.name, one.advice) for one in found), strict=True)
        )
        what = f"{' and '.join(names)} at step {step}: {'; '.join(map(str, found))}"
        logger.error(
            "%s. Check the trajectories and the metrics deepeyes/*/: %s. See docs/metrics.md.",
            what,
            "; ".join(advice),
        )
        return what if self._settings.alarm.stop else None


@contextmanager
def log_failures(what: str) -> Iterator[None]:
    """Log any exception as a warning, so that monitoring never fails a step."""
    try:
        yield
    except Exception:
        logger.warning("%s are not available; training continues", what, exc_info=True)


def named(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Prefix the names with ``prefix/``."""
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def sample_keys(batch: Any) -> list[str]:
    """Return the keys of samples, ``<group>_<session>_<output>``.

    Padding is excluded, and only the last output of a session is included.
    """
    last: dict[str, tuple[int, str]] = {}
    for key, tag in zip(batch.keys, batch.tags, strict=True):
        if not tag.get("is_padding", False):
            session, _, output = key.rpartition("_")
            last[session] = max(last.get(session, (-1, "")), (int(output), key))
    return [key for _, key in last.values()]


def group_of(key: str) -> str:
    """Return the group of a sample's key."""
    return key.rsplit("_", 2)[0]


def groups_without_spread(keys: Sequence[str], samples: Sequence[SampleRecord]) -> dict[str, float]:
    """Compute the share of groups with equal rewards; empty if samples have no score.

    Args:
        keys: Keys of the samples.
        samples: Records in the same order; empty for samples of another agent loop.
    """
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for key, sample in zip(keys, samples, strict=bool(samples)):
        if "score" not in sample.rewards:
            return {}
        groups[group_of(key)].append(sample.rewards["score"])
    if not groups:
        return {}
    same = [
        not has_spread(torch.tensor(rewards, dtype=torch.float64)) for rewards in groups.values()
    ]
    return {"groups_without_spread": sum(same) / len(same)}


def whole_groups(keys: Sequence[str], least: int) -> list[str]:
    """Select whole groups until they have at least ``least`` samples."""
    groups: dict[str, list[str]] = {}
    for key in sorted(keys):  # Group names are random, so this is a random selection.
        groups.setdefault(group_of(key), []).append(key)
    chosen: list[str] = []
    for group in groups.values():
        if len(chosen) >= least:
            break
        chosen += group
    return chosen


def read_records(keys: Sequence[str], partition: str) -> list[SampleRecord]:
    """Read the agent loop's records; empty for samples of other agent loops."""
    if not keys:
        return []
    data = tq.kv_batch_get(keys=list(keys), partition_id=partition, select_fields=[SAMPLE_FIELD])
    if SAMPLE_FIELD not in data:
        return []
    return [SampleRecord.model_validate_json(record) for record in values_of(data[SAMPLE_FIELD])]


def read_board_samples(keys: Sequence[str], partition: str) -> list[BoardSample]:
    """Read the per-token fields of samples."""
    if not keys:
        return []
    data = tq.kv_batch_get(
        keys=list(keys), partition_id=partition, select_fields=list(_BOARD_FIELDS)
    )
    rows = {name: values_of(data[name]) for name in _BOARD_FIELDS if name in data}
    absent = [None] * len(keys)
    return [
        BoardSample(
            prompt=rows["prompts"][at],
            response=rows["responses"][at],
            mask=rows["response_mask"][at],
            log_probs=rows["old_log_probs"][at],
            token_rewards=rows.get("token_level_rewards", rows["rm_scores"])[at],
            reward=sum(rows["rm_scores"][at]),
            ground_truth=text_of(rows["reward_model"][at].get("ground_truth")),
            data_source=str(rows["data_source"][at]),
            reference_log_probs=rows.get("ref_log_prob", absent)[at],
            values=rows.get("values", absent)[at],
        )
        for at in range(len(keys))
    ]


def values_of(field: Any) -> list[Any]:
    """Convert a field of any container type to a list of plain values by sample."""
    rows = field.unbind() if isinstance(field, torch.Tensor) else list(field)
    return [
        row.tolist()
        if isinstance(row, torch.Tensor)
        else row.data
        if isinstance(row, NonTensorData)
        else row
        for row in rows
    ]


def read_history(path: Path) -> dict[int, dict[str, float]]:
    """Read the calls by step of a resumed run; empty if the file cannot be read."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {int(step): dict(calls) for step, calls in stored.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("the alarm starts without a history: %s: %s", path, error)
        return {}


def write_history(path: Path, text: str) -> None:
    """Replace the history file atomically.

    Raises:
        OSError: The file cannot be written.
    """
    with whole_file(path) as partial_file:
        partial_file.write_text(text, encoding="utf-8")
