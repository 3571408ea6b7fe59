"""VLMEvalKit launcher: build the command, and determine the outcome of every dataset."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.files import read_json
from deepeyes_plugins.hosts.openai.settings import OpenAISettings
from eval_plugins.report.tables import UnreadableTable
from eval_plugins.vlmevalkit.leftovers import STATUS_FILE, Combination, failed_samples
from eval_plugins.vlmevalkit.settings import load_evaluation

MODEL = "DeepEyesV2"
DEFAULT_WORK_DIR = "outputs"

WORK_DIR_VARIABLE = "MMEVAL_ROOT"
"""VLMEvalKit's own variable; it overrides ``--work-dir`` except in API mode."""

NOT_SCORED = frozenset(
    {
        "invalid_dataset",
        "Incomplete infer result",
        "No infer result found",
        "evaluate_returned_none",
        "no_inference_tasks_generated",
    }
)
"""Skip reasons that mean that a dataset failed. Other reasons (``--mode infer``, datasets that only
an official server scores) are intended."""


class LaunchError(Exception):
    """VLMEvalKit cannot be started with these arguments; the message says what to do."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of one dataset.

    Attributes:
        model: Name of the model.
        dataset: Name of the dataset.
        failure: Why it failed; ``None`` if it did not.
        failed_samples: Number of failed samples; ``--reuse`` repeats them.
    """

    model: str
    dataset: str
    failure: str | None = None
    failed_samples: int = 0


def command(checkout: Path | None, arguments: Sequence[str]) -> list[str]:
    """Build the command that runs VLMEvalKit with this process's interpreter.

    Args:
        checkout: Folder of an upstream checkout, whose run.py is started; ``None`` for the
            installed package, as ``python -m vlmeval`` (ms-vlmeval).
        arguments: VLMEvalKit's arguments. ``--model DeepEyesV2`` is added if they choose no model.

    Raises:
        LaunchError: The checkout has no run.py, or the arguments choose no dataset.
    """
    given = list(arguments)
    names = {argument.partition("=")[0] for argument in given}
    if not names & {"--config", "--data"}:
        raise LaunchError(
            "no dataset is chosen: give --config recipes/eval_math.json, or --data VStarBench …"
        )
    if not names & {"--config", "--model"}:
        given += ["--model", MODEL]
    if checkout is None:
        return [sys.executable, "-m", "vlmeval", *given]
    script = checkout / "run.py"
    if not script.is_file():
        raise LaunchError(f"{checkout} is not a VLMEvalKit checkout: {script} does not exist")
    return [sys.executable, str(script), *given]


def work_dir(arguments: Sequence[str], environment: Mapping[str, str]) -> Path:
    """Return the folder that VLMEvalKit writes to."""
    chosen = _values(arguments, "--work-dir")
    folder = chosen[-1] if chosen else DEFAULT_WORK_DIR
    if "--api-mode" not in arguments:
        folder = environment.get(WORK_DIR_VARIABLE, folder)
    return Path(folder)


def expected(arguments: Sequence[str]) -> list[Combination]:
    """Return the requested models and datasets.

    Raises:
        LaunchError: The ``--config`` file cannot be read, or names no models or no datasets.
    """
    configs = _values(arguments, "--config")
    models, names = _values(arguments, "--model") or [MODEL], _values(arguments, "--data")
    if configs:
        try:
            recipe: Any = read_json(Path(configs[-1]).read_text(encoding="utf-8"))
            models, names = list(recipe["model"]), list(recipe["data"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise LaunchError(
                f"--config {configs[-1]} names no models or no datasets: {error!r}"
            ) from error
    return [Combination(model, name) for model in models for name in names]


def servers(arguments: Sequence[str], agent: Path | None) -> list[OpenAISettings]:
    """Return the settings of the servers that the requested DeepEyes models use.

    Settings that VLMEvalKit will refuse are left to it.
    """
    configs = _values(arguments, "--config")
    found = []
    models: dict[str, Any] = {name: {} for name in _values(arguments, "--model") or [MODEL]}
    if configs:
        models = read_json(Path(configs[-1]).read_text(encoding="utf-8"))["model"]
    for name, keywords in models.items():
        options = dict(keywords) if isinstance(keywords, Mapping) else {}
        if options.pop("class", name) == MODEL:
            with contextlib.suppress(SettingsError, TypeError):
                config = options.pop("agent_config", agent and str(agent))
                for own in ("retry", "verbose", "fail_msg"):
                    options.pop(own, None)
                found.append(load_evaluation(config, **options).server)
    return found


def rescores_in_place(arguments: Sequence[str]) -> bool:
    """Return whether failed samples are repeated in the folder that holds their old scores.

    False in VLMEvalKit's API mode, where each run has its own folder.
    """
    keeps = {"--api-mode", "--keep-failed"} & set(arguments)
    return not keeps and "eval" not in _values(arguments, "--mode")


def outcomes(folder: Path, asked: Sequence[Combination], since: datetime) -> list[Outcome]:
    """Determine the outcome of every dataset; VLMEvalKit itself always exits with 0.

    Args:
        folder: VLMEvalKit's work dir.
        asked: Requested models and datasets; a dataset without a status has failed.
        since: Start of the run; older status entries are ignored.
    """
    names = {combination.dataset for combination in asked}
    models = {combination.model for combination in asked}
    found: list[Outcome] = []
    for run, status in _statuses(folder):
        model = status.get("model_name", "")
        for name, entry in status.get("datasets", {}).items():
            if name in names and _is_new(entry, since):
                found.append(_outcome(run, Combination(model, name), entry))
    seen = {(outcome.model, outcome.dataset) for outcome in found}
    # VLMEvalKit may report a requested dataset under another model name.
    renamed = {dataset for model, dataset in seen if model not in models}
    missing = [
        Outcome(one.model, one.dataset, "it was not evaluated: see the log")
        for one in dict.fromkeys(asked)
        if (one.model, one.dataset) not in seen and one.dataset not in renamed
    ]
    return [*found, *missing]


def _outcome(run: Path, combination: Combination, entry: Mapping[str, Any]) -> Outcome:
    failure, failed = _failure(entry), 0
    try:
        failed = failed_samples(run, combination) or 0
    except (OSError, UnreadableTable) as error:
        failure = failure or str(error)
    return Outcome(combination.model, combination.dataset, failure, failed)


def _statuses(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield each status file once, with its folder; the model's folder links to its runs."""
    for path in sorted({path.resolve() for path in folder.rglob(STATUS_FILE)}):
        with contextlib.suppress(OSError, ValueError):
            status = read_json(path.read_text(encoding="utf-8"))
            if isinstance(status, dict):
                yield path.parent, status


def _is_new(entry: Mapping[str, Any], since: datetime) -> bool:
    try:
        return datetime.fromisoformat(entry["updated_at"]) >= since
    except (LookupError, ValueError, TypeError):
        return False


def _failure(entry: Mapping[str, Any]) -> str | None:
    if error := entry.get("error_message"):
        return str(error)
    if entry.get("skip_reason") in NOT_SCORED:
        return str(entry["skip_reason"])
    if entry.get("status") != "done":
        return f"it stopped at the stage {entry.get('status')!r}"
    return None


def _values(arguments: Sequence[str], option: str) -> list[str]:
    """Return the values of an option, parsed as argparse does."""
    values: list[str] = []
    collecting = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("--"):
            collecting = name == option
            if collecting:
                values = [value] if equals else []
                collecting = not equals
        elif collecting:
            values.append(argument)
    return values
