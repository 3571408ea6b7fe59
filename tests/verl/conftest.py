from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoProcessor
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from deepeyes_plugins.hosts.transformers.tiny_model import make_tiny_qwen2_5_vl
from deepeyes_plugins.hosts.verl.policy import TokenBudget, TokenPolicy
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2, Dialect
from deepeyes_plugins.quickstart.task import task_texts
from deepeyes_plugins.rollout import Task

TURN_END = "<|im_end|>"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_model")
    make_tiny_qwen2_5_vl(folder, task_texts())
    return folder


@pytest.fixture(scope="session")
def processor(tiny_model: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def builder(processor: Any) -> Any:
    return create_continuous_token_builder(
        processor.tokenizer, hf_model_type="qwen2_5_vl", processor=processor
    )


@dataclass
class Output:
    token_ids: list[int]
    log_probs: list[float] | None
    extra_fields: dict[str, Any] = field(default_factory=dict)
    routed_experts: Any = None
    stop_reason: str | None = "completed"
    num_preempted: int | None = None


@dataclass
class ScriptedEngine:
    """Returns prepared ids, as an engine would, and remembers what it was asked."""

    turns: Sequence[list[int]]
    with_log_probs: bool = True
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, **request: Any) -> Output:
        ids = self.turns[len(self.asked)]
        self.asked.append(request)
        log_probs = [-0.5 - at for at in range(len(ids))] if self.with_log_probs else None
        return Output(list(ids), log_probs, {"max_global_steps": len(self.asked)})


def picture(width: int = 64, height: int = 64, colour: str = "red") -> EncodedImage:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return EncodedImage(buffer.getvalue())


def question(*images: EncodedImage, text: str = "What colour?") -> Task:
    return Task(id="1", messages=(Message("system", ("Look.",)), Message("user", (*images, text))))


def make_policy(
    builder: Any,
    engine: ScriptedEngine,
    *,
    dialect: Dialect = DEEPEYES_V2,
    response: int = 2000,
    turn: int = 1000,
    name: str = "vllm",
) -> TokenPolicy:
    budget = TokenBudget(prompt=500, response=response, turn=turn)
    return TokenPolicy(engine, builder, dialect, budget, {"temperature": 1.0}, engine=name)
