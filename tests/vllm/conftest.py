"""One real ``vllm serve`` of a tiny model for all tests of this folder, the quickstart's way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from deepeyes_plugins.cli.paths import recipes_folder
from deepeyes_plugins.quickstart.engines import ENGINES, EngineName
from deepeyes_plugins.quickstart.stages import serve
from deepeyes_plugins.quickstart.task import task_texts
from deepeyes_plugins.quickstart.tiny_model import make_tiny_qwen2_5_vl


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_model")
    make_tiny_qwen2_5_vl(folder, task_texts())
    processor = AutoProcessor.from_pretrained(folder)
    # Bounds as wide as a real model's, in which an image keeps its shape.
    processor.image_processor.size = {"shortest_edge": 56**2, "longest_edge": 448**2}
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def processor(checkpoint: Path) -> Any:
    return AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture(scope="package")
def builder(processor: Any) -> Any:
    return create_continuous_token_builder(
        processor.tokenizer, hf_model_type="qwen2_5_vl", processor=processor
    )


@pytest.fixture(scope="package")
def server_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="package")
def url(checkpoint: Path, server_log: Path) -> Iterator[str]:
    engine = ENGINES[EngineName.VLLM]
    with serve(engine, [checkpoint], recipes_folder(), server_log) as (url,):
        yield url
