"""One real ``vllm serve`` of a tiny model for all tests of this folder, the quickstart's way."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from deepeyes_plugins.cli.paths import recipes_folder
from deepeyes_plugins.quickstart.engines import ENGINES, EngineName
from deepeyes_plugins.quickstart.process import Process, answers, free_ports
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


class Server:
    """``vllm serve`` on a port that stays the same when it is killed and started again.

    Attributes:
        url: Base URL.
    """

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        engine = ENGINES[EngineName.VLLM]
        (self._port,) = free_ports(1)
        self._command = engine.command(checkpoint, recipes_folder(), str(self._port))
        self._variables = engine.server
        self._log = folder / "server.log"
        self.url = f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Start it; it ends with the thread that calls this."""
        self._process = Process(self._command, self._log, self._variables)

    def wait(self) -> None:
        """Wait until it answers."""
        while self._process.running() and not answers(self._port):
            time.sleep(0.2)

    def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        self._process.signal(signal.SIGKILL)
        assert self._process.wait(10)


@pytest.fixture(scope="package")
def server(checkpoint: Path, server_log: Path) -> Iterator[Server]:
    server = Server(checkpoint, server_log)
    server.start()
    server.wait()
    yield server
    server.kill()


@pytest.fixture(scope="package")
def url(server: Server) -> str:
    return server.url
