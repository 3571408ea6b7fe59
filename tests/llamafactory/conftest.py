"""A tiny Qwen2.5-VL and small data sets for the real LLaMA-Factory."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepeyes_plugins.hosts.transformers.tiny_model import make_tiny_qwen2_5_vl
from deepeyes_plugins.quickstart.datasets import write_sft
from deepeyes_plugins.quickstart.task import split_examples, task_texts


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that LLaMA-Factory cannot tell from a real one."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_qwen2_5_vl(folder, task_texts(), hidden_size=64, layers=2, vision_hidden_size=64)
    return folder


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    """Eight demonstrations as the data set ``framed_dots`` with formatting ``deepeyes``."""
    write_sft(split_examples("sft", 8), tmp_path / "data")
    return tmp_path / "data"
