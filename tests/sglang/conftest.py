"""SGLang's real server on the CPU, in the environment that `make test-sglang` makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from deepeyes_plugins.checkpoints import export
from deepeyes_plugins.quickstart.process import free_ports, model_servers
from deepeyes_plugins.quickstart.task import task_texts
from deepeyes_plugins.quickstart.tiny_model import make_tiny_qwen2_5_vl

PYTHON = Path(".venv-sglang/bin/python")
CONTEXT = 4096
MOST_IMAGES = 8
FLAGS = (
    *("--device", "cpu", "--dtype", "float32", "--attention-backend", "torch_native"),
    *("--mm-attention-backend", "sdpa", "--sampling-backend", "pytorch"),
    *("--grammar-backend", "none", "--disable-overlap-schedule", "--skip-server-warmup"),
    *("--max-total-tokens", "16384", "--max-running-requests", "16"),
    *("--context-length", str(CONTEXT)),
    *("--limit-mm-data-per-request", f'{{{{"image": {MOST_IMAGES}}}}}'),
)


@contextmanager
def serve(model: Path, log: Path, *flags: str) -> Iterator[str]:
    """Run a server and yield its URL, without /v1."""
    command = (str(PYTHON), "-m", "sglang.launch_server", "--model-path", str(model))
    address = ("--host", "127.0.0.1", "--port", "{port}")
    environment = {
        "SGLANG_USE_CPU_ENGINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        # By default the server's port + 10,000, which may not exist.
        "SGLANG_GRPC_PORT": str(free_ports(1)[0]),
    }
    commands = {log: (*command, *address, *FLAGS, *flags)}
    with model_servers(commands, environment, limit=900) as (url,):
        yield url.removesuffix("/v1")


@pytest.fixture(scope="package")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL as transformers saves it."""
    folder = tmp_path_factory.mktemp("saved")
    make_tiny_qwen2_5_vl(folder, task_texts())
    processor = AutoProcessor.from_pretrained(folder)
    # Bounds as wide as a real model's, in which an image keeps its shape.
    processor.image_processor.size = {"shortest_edge": 56**2, "longest_edge": 448**2}
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def exported(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    assert export(saved, folder).renamed
    return folder


@pytest.fixture(scope="package")
def model(saved: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(saved, dtype=torch.float32).eval()


@pytest.fixture(scope="package")
def processor(saved: Path) -> Any:
    return AutoProcessor.from_pretrained(saved)


def most_likely(model: Any, inputs: Any) -> float:
    """Highest log-probability of what follows a prompt, from transformers, which trains."""
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    return float(logits.log_softmax(-1).max())
