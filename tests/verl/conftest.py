from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from deepeyes_plugins.hosts.verl.policy import TokenBudget, TokenPolicy
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2, Dialect
from deepeyes_plugins.quickstart.task import task_texts
from deepeyes_plugins.quickstart.tiny_model import make_tiny_qwen2_5_vl
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
    log_probs: Callable[[list[int]], list[float] | None] = lambda ids: [
        -0.5 - at for at in range(len(ids))
    ]
    fields: Sequence[dict[str, Any]] = ()
    stop_reason: str = "completed"
    preempted: int | None = None
    routing: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, **request: Any) -> Output:
        turn = len(self.asked)
        ids = self.turns[turn]
        self.asked.append(request)
        # A row for each token that the engine has read: all but the last one that it gave.
        read = np.array([*request["prompt_ids"], *ids][:-1])
        return Output(
            list(ids),
            self.log_probs(ids),
            self.fields[turn] if self.fields else {"max_global_steps": turn + 1},
            np.tile(read[:, None, None], (1, 2, 4)) if self.routing else None,
            self.stop_reason,
            self.preempted,
        )


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
    prompt: int = 500,
    response: int = 2000,
    turn: int = 1000,
    name: str = "vllm",
) -> TokenPolicy:
    budget = TokenBudget(prompt=prompt, response=response, turn=turn)
    return TokenPolicy(engine, builder, dialect, budget, {"temperature": 1.0}, engine=name)
