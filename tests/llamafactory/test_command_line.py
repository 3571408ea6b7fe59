"""``llamafactory-cli train`` as users run it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from deepeyes_plugins.hosts.llamafactory.converter import BAD_ROWS_VARIABLE
from tests.llamafactory.conftest import Rows, train_arguments, write_dataset

SECONDS = 600
"""A run takes about twenty-five on an idle machine, nearly all of them imports."""


@pytest.fixture(scope="module")
def runs(
    tiny_model_path: Path,
    demonstrations: Path,
    rows: Rows,
    tmp_path_factory: pytest.TempPathFactory,
) -> Mapping[str, subprocess.CompletedProcess[str]]:
    """Three runs side by side: good rows, a bad row that stops, a bad row that is dropped."""
    folder = tmp_path_factory.mktemp("runs")
    bad = copy.deepcopy(rows)
    bad[2]["messages"][1]["content"] += "<image>"

    def train(name: str, rows: Rows, bad_rows: str) -> subprocess.CompletedProcess[str]:
        home = folder / name
        data = write_dataset(home, rows)
        arguments = train_arguments(tiny_model_path, data, demonstrations, home / "out")
        recipe = home / "sft.yaml"
        recipe.write_text(yaml.safe_dump({**arguments, "preprocessing_num_workers": 2}))
        return subprocess.run(
            [str(Path(sys.executable).parent / "llamafactory-cli"), "train", str(recipe)],
            env={**os.environ, BAD_ROWS_VARIABLE: bad_rows},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    with ThreadPoolExecutor() as pool:
        started = {
            name: pool.submit(train, name, chosen, bad_rows)
            for name, chosen, bad_rows in (
                ("good", rows, "stop"),
                ("stop", bad, "stop"),
                ("drop", bad, "drop"),
            )
        }
        return {name: run.result() for name, run in started.items()}


def test_training_with_formatting_deepeyes(
    runs: Mapping[str, subprocess.CompletedProcess[str]],
) -> None:
    run = runs["good"]

    assert run.returncode == 0, run.stderr
    assert "train_loss" in run.stdout
    assert "Num examples = 8" in run.stderr


def test_bad_row_stops_before_the_model_is_loaded(
    runs: Mapping[str, subprocess.CompletedProcess[str]],
) -> None:
    run = runs["stop"]

    assert run.returncode != 0
    last = run.stderr[run.stderr.rindex("DataError") :]
    assert "rows.json: 1 of 8 rows cannot be used" in last
    assert "rows.json, row 3: 3 <image> placeholders but 2 images" in last
    assert "trainable params" not in run.stderr


def test_bad_row_is_dropped_and_counted(
    runs: Mapping[str, subprocess.CompletedProcess[str]],
) -> None:
    run = runs["drop"]

    assert run.returncode == 0, run.stderr
    assert "dropping 1 row" in run.stderr
    assert "rows.json, row 3: 3 <image> placeholders but 2 images" in run.stderr
    assert "Num examples = 7" in run.stderr
