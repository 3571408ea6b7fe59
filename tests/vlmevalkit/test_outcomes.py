"""What became of a run, as VLMEvalKit's status files tell; its exit status does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from eval_plugins.vlmevalkit.launch import outcomes
from eval_plugins.vlmevalkit.leftovers import Combination

STARTED = datetime(2026, 1, 1, tzinfo=UTC)


def done(work_dir: Path, model: str, *datasets: str) -> None:
    folder = work_dir / model
    folder.mkdir()
    entry = {"status": "done", "updated_at": STARTED.isoformat()}
    status = {"model_name": model, "datasets": dict.fromkeys(datasets, entry)}
    (folder / "status.json").write_text(json.dumps(status))


def missing(work_dir: Path, models: Sequence[str], *datasets: str) -> set[tuple[str, str]]:
    asked = [Combination(model, name) for model in models for name in datasets]
    return {
        (outcome.model, outcome.dataset)
        for outcome in outcomes(work_dir, asked, STARTED)
        if outcome.failure is not None and "it was not evaluated" in outcome.failure
    }


def test_a_dataset_without_a_trace_was_not_evaluated(tmp_path: Path) -> None:
    done(tmp_path, "A", "x")
    assert missing(tmp_path, ["A"], "x", "y") == {("A", "y")}


def test_what_one_model_did_is_not_what_another_did(tmp_path: Path) -> None:
    done(tmp_path, "A", "x", "y")
    done(tmp_path, "B", "y")
    assert missing(tmp_path, ["A", "B"], "x", "y") == {("B", "x")}


def test_a_model_may_be_called_otherwise_in_the_results(tmp_path: Path) -> None:
    done(tmp_path, "A-renamed", "x")
    assert missing(tmp_path, ["A"], "x") == set()
