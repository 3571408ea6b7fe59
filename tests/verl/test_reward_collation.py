"""Rows of different data sources in one batch, through verl's own reward and metrics code."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopMetrics,
    AgentLoopWorker,
    _InternalAgentLoopOutput,
)
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.metric_utils import process_validation_metrics

from deepeyes_plugins.hosts.verl.reward import TRAJECTORY_FIELD, compute_score
from deepeyes_plugins.rollout import EndReason, InfrastructureError, Trajectory, TurnRecord

SOURCES = ["vstar-test", "perception", "vstar", "search", "thinklite_eureka", "reason"]
RIGHT = "<think>Seen.</think><answer>4</answer>"
BOXED = r"<think>Seen.</think>\boxed{4}"


def recorded(source: str, *, end_reason: EndReason = EndReason.ANSWER) -> str:
    text = BOXED if source == "thinklite_eureka" else RIGHT
    return Trajectory(
        task_id="1", turns=[TurnRecord(text=text)], end_reason=end_reason
    ).model_dump_json()


async def scored(builder: Any, source: str, trajectory: str) -> dict[str, Any]:
    """One row through verl's reward manager, which calls our entry."""
    manager = NaiveRewardManager.__new__(NaiveRewardManager)
    manager.tokenizer = builder.tokenizer
    manager.compute_score = compute_score
    manager.is_async_reward_score = True
    manager.reward_router_address = None
    manager.loop = asyncio.get_running_loop()
    ids = torch.tensor([builder.tokenizer.encode("red")])
    row = DataProto(
        batch=TensorDict({"responses": ids, "attention_mask": torch.ones_like(ids)}, batch_size=1),
        non_tensor_batch={
            "data_source": np.array([source], dtype=object),
            "reward_model": np.array([{"ground_truth": "4"}], dtype=object),
            "extra_info": np.array([{"index": "1", "question": "2 + 2?"}], dtype=object),
            "tool_extra_fields": np.array([{TRAJECTORY_FIELD: trajectory}], dtype=object),
            "__num_turns__": np.array([2]),
        },
    )
    return await manager.run_single(row)


async def test_mixed_sources_collate_and_reach_the_validation_metrics(builder: Any) -> None:
    results = [await scored(builder, source, recorded(source)) for source in SOURCES]

    outputs = [
        _InternalAgentLoopOutput(
            prompt_ids=torch.ones(1, 2, dtype=torch.int64),
            response_ids=torch.ones(1, 3, dtype=torch.int64),
            input_ids=torch.ones(1, 5, dtype=torch.int64),
            position_ids=torch.ones(1, 5, dtype=torch.int64),
            response_mask=torch.ones(1, 3, dtype=torch.int64),
            attention_mask=torch.ones(1, 5, dtype=torch.int64),
            reward_score=result["reward_score"],
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={"reward_extra_info": result["reward_extra_info"]},
        )
        for result in results
    ]
    batch = AgentLoopWorker._postprocess(
        SimpleNamespace(reward_loop_worker_handles=["a worker"]), outputs
    )
    names = batch.meta_info["reward_extra_keys"]
    infos = {name: batch.non_tensor_batch[name].tolist() for name in names}
    metrics = process_validation_metrics(SOURCES, [f"uid-{source}" for source in SOURCES], infos)

    assert all(math.isfinite(value) for values in infos.values() for value in values)
    assert batch.batch["rm_scores"].sum(dim=1).tolist() == pytest.approx(
        [1.0, 1.0, 0.8, 1.0, 1.2, 1.0]
    )
    for source, result in zip(SOURCES, results, strict=True):
        for name in names:
            # Each row's own value, and not that of its neighbour.
            assert metrics[source][name]["mean@1"] == pytest.approx(
                result["reward_extra_info"][name]
            )
    assert {"acc", "format", "tool", "infrastructure_failed", "turns"} <= set(names)


async def test_a_trajectory_that_we_failed_leaves_no_score_for_verl(builder: Any) -> None:
    failed = recorded("perception", end_reason=EndReason.INFRASTRUCTURE)
    with pytest.raises(InfrastructureError, match="has no score"):
        await scored(builder, "perception", failed)


async def test_the_question_is_that_of_the_row_else_the_recorded_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    class Stub:
        async def score(self, task: Any, trajectory: Any) -> Any:
            asked.append(task.question)
            return SimpleNamespace(score=0.0, parts={})

        def aligned(self, source: str, result: Any) -> dict[str, float]:
            return {}

    monkeypatch.setattr("deepeyes_plugins.hosts.verl.reward.shared_scorer", lambda path: Stub())
    trajectory = Trajectory(
        task_id="1", question="How many cars?", end_reason=EndReason.ANSWER
    ).model_dump_json()
    await compute_score("perception", "", "4", {TRAJECTORY_FIELD: trajectory})
    row = {TRAJECTORY_FIELD: trajectory, "question": "<image>\nQuestion: How many?"}
    await compute_score("perception", "", "4", row)
    assert asked == ["How many cars?", "How many?"]
