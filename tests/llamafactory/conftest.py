"""A tiny Qwen2.5-VL and small data sets for the real LLaMA-Factory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer

from deepeyes_plugins.quickstart.datasets import write_sft
from deepeyes_plugins.quickstart.task import split_examples, task_texts
from deepeyes_plugins.quickstart.tiny_model import make_tiny_qwen2_5_vl

Rows = list[dict[str, Any]]

SECONDS = 600
"""A run takes about twenty-five on an idle machine, nearly all of them imports."""

SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that LLaMA-Factory cannot tell from a real one."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_qwen2_5_vl(folder, task_texts(), hidden_size=64, layers=2, vision_hidden_size=64)
    return folder


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows as the data set ``framed_dots``; its folder is not to be changed."""
    folder = tmp_path_factory.mktemp("demonstrations")
    write_sft(split_examples("sft", 8), folder)
    return folder


@pytest.fixture(scope="session")
def rows(demonstrations: Path) -> Rows:
    """The rows of ``demonstrations``; their image paths are relative to it."""
    loaded: Rows = json.loads((demonstrations / "framed_dots.json").read_text())
    return loaded


def write_dataset(folder: Path, rows: Rows, formatting: str = "deepeyes") -> Path:
    """Write ``rows`` as the data set ``rows`` and return ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(rows))
    entry = {"file_name": "rows.json", "formatting": formatting}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": entry}))
    return folder


def train_arguments(model: Path, data: Path, media: Path, output: Path) -> dict[str, Any]:
    """The arguments of a run of two steps on the CPU."""
    return {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "freeze_vision_tower": True,
        "dataset_dir": str(data),
        "media_dir": str(media),
        "dataset": "rows",
        "template": "deepeyes_qwen2_vl",
        "cutoff_len": 4096,
        "cache_dir": str(output.parent / "cache"),
        "output_dir": str(output),
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
    }


def train(
    arguments: Mapping[str, Any],
    recipe: Path,
    command: Sequence[str] = (str(SCRIPTS / "llamafactory-cli"), "train"),
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Write ``arguments`` as ``recipe`` and train from it in a process of its own, as users do.

    Never in this process: ``import vlmeval`` switches gradients off in the whole of one.
    """
    recipe.write_text(yaml.safe_dump(dict(arguments)))
    return subprocess.run(
        [*command, str(recipe)],
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def tokenized(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Run LLaMA-Factory up to the point where training would start."""
    model, data, training, _, _ = get_train_args(arguments)
    tokenizer_and_processor = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(tokenizer_and_processor["tokenizer"], data)
    module = get_dataset(template, model, data, training, stage="sft", **tokenizer_and_processor)
    return list(module["train_dataset"])
