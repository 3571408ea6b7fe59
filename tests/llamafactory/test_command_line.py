"""``llamafactory-cli train`` as users run it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from transformers import AutoProcessor

from deepeyes_plugins.hosts.llamafactory.converter import BAD_ROWS_VARIABLE
from tests.llamafactory.conftest import SCRIPTS, Rows, train, train_arguments, write_dataset

RAY_WORKER = Path(__file__).with_name("ray_worker.py")
Runs = Mapping[str, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def runs(
    tiny_model_path: Path,
    demonstrations: Path,
    rows: Rows,
    tmp_path_factory: pytest.TempPathFactory,
) -> Runs:
    """Runs side by side, together with every way to read data: workers, streaming, a zip file."""
    folder = tmp_path_factory.mktemp("runs")
    archive = folder / "images.zip"
    with ZipFile(archive, "w") as opened:
        for path in (demonstrations / "images").iterdir():
            opened.write(path, f"images/{path.name}")
    bad = copy.deepcopy(rows)
    bad[2]["messages"][1]["content"] += "<image>"
    torchrun = {
        "FORCE_TORCHRUN": "1",
        "NPROC_PER_NODE": "2",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",  # LLaMA-Factory calls it by name.
    }
    workers = {"preprocessing_num_workers": 2}
    from_zip = {"media_dir": str(archive), "dataloader_num_workers": 1}
    streaming = {"media_dir": str(archive), "streaming": True}

    def start(
        name: str,
        rows: Rows,
        options: Mapping[str, Any],
        variables: Mapping[str, str],
        **how: Sequence[str],
    ) -> subprocess.CompletedProcess[str]:
        home = folder / name
        data = write_dataset(home, rows)
        arguments = train_arguments(tiny_model_path, data, demonstrations, home / "out")
        return train({**arguments, **options}, home / "sft.yaml", variables=variables, **how)

    asked: dict[str, tuple[Any, ...]] = {
        "good": (rows, {**workers, **from_zip}, {}),
        "stop": (bad, workers, {BAD_ROWS_VARIABLE: "stop"}),
        "drop": (bad, {**workers, "cutoff_len": 120}, {BAD_ROWS_VARIABLE: "drop"}),
        "torchrun": (rows, streaming, torchrun),
    }
    worker = [sys.executable, str(RAY_WORKER)]
    with ThreadPoolExecutor() as pool:
        started = {name: pool.submit(start, name, *how) for name, how in asked.items()}
        started["ray"] = pool.submit(start, "ray", rows, {"packing": True}, {}, command=worker)
        return {name: run.result() for name, run in started.items()}


def test_training_with_formatting_deepeyes(runs: Runs, tiny_model_path: Path) -> None:
    run = runs["good"]

    assert run.returncode == 0, run.stderr
    assert "train_loss" in run.stdout
    assert "Num examples = 8" in run.stderr

    trained, before = (
        AutoProcessor.from_pretrained(folder)
        for folder in (Path(run.args[-1]).parent / "out", tiny_model_path)
    )
    assert trained.chat_template == before.chat_template is not None
    assert trained.tokenizer.get_vocab() == before.tokenizer.get_vocab()


def test_bad_row_stops_before_the_model_is_loaded(runs: Runs) -> None:
    run = runs["stop"]

    assert run.returncode != 0
    last = run.stderr[run.stderr.rindex("DataError") :]
    assert "rows.json: 1 of 8 rows cannot be used" in last
    assert "rows.json, row 3: 3 <image> placeholders but 2 images" in last
    assert "trainable params" not in run.stderr


def test_bad_row_is_dropped_and_counted(runs: Runs) -> None:
    run = runs["drop"]

    assert run.returncode == 0, run.stderr
    assert "dropping 1 row" in run.stderr
    assert "rows.json, row 3: 3 <image> placeholders but 2 images" in run.stderr
    assert "Num examples = 7" in run.stderr


@pytest.mark.parametrize("name", ["torchrun", "ray"])
def test_other_launchers(runs: Runs, name: str) -> None:
    """Two processes on gloo that stream from a zip file, and a worker of Ray's that packs."""
    run = runs[name]

    assert run.returncode == 0, run.stderr
    # Ray may not bring the last lines that its workers print.
    results = Path(run.args[-1]).parent / "out/train_results.json"
    assert "train_loss" in json.loads(results.read_text())
