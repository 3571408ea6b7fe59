"""What verl makes of groups in which trajectories are missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import AdvantageEstimator
from verl.trainer.ppo.v1 import replay_buffer
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from deepeyes_plugins.hosts.verl import replay
from deepeyes_plugins.hosts.verl.replay import EagerReplayBuffer, EagerReplayBufferAsync


def advantages(scores: dict[str, float]) -> dict[str, float]:
    """Return verl's GRPO advantage by key (prompt_session_index)."""
    count = len(scores)
    mask = torch.ones(count, 3)
    rewards = torch.zeros(count, 3)
    rewards[:, -1] = torch.tensor(list(scores.values()))
    batch = DataProto.from_dict(
        {"token_level_rewards": rewards, "response_mask": mask},
        non_tensors={"uid": [key.split("_")[0] for key in scores]},
    )
    result = compute_advantage_for_multi_trajectories(batch, list(scores), AdvantageEstimator.GRPO)
    return dict(zip(scores, result.batch["advantages"][:, 0].tolist(), strict=True))


def test_a_missing_trajectory_has_no_part_in_the_advantage_of_the_others() -> None:
    """As if only the others had been asked for: it is no wrong answer among them."""
    left = advantages({"a_0_0": 1.0, "a_2_0": 0.0, "a_3_0": 1.0})
    asked = advantages({"b_0_0": 1.0, "b_1_0": 0.0, "b_2_0": 1.0})
    assert list(left.values()) == pytest.approx(list(asked.values()))
    wrong = advantages({"a_0_0": 1.0, "a_1_0": 0.0, "a_2_0": 0.0, "a_3_0": 1.0})
    assert wrong["a_0_0"] != pytest.approx(left["a_0_0"])


def test_one_alone_would_have_its_bare_score_for_an_advantage() -> None:
    """Which is why groups that small are given up."""
    assert advantages({"a_0_0": 0.7})["a_0_0"] == pytest.approx(0.7)


class Queue:
    """The metadata of verl's transfer queue, in this process."""

    def __init__(self, tags: dict[str, dict[str, Any]]) -> None:
        self.tags = {"train": tags}

    def kv_list(self) -> dict[str, dict[str, dict[str, Any]]]:
        return self.tags

    def kv_clear(self, keys: list[str], partition_id: str) -> None:
        for key in keys:
            self.tags[partition_id].pop(key)


def prompt(status: str) -> dict[str, Any]:
    return {"is_prompt": True, "status": status, "global_steps": 1}


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    done = {"status": "success"}
    queue = Queue(
        {
            **{"whole": prompt("finished"), "whole_0_0": done, "whole_1_0": done},
            **{"torn": prompt("failure"), "torn_0_0": done, "torn_2_0": done},
            **{"lonely": prompt("failure"), "lonely_1_0": done},
        }
    )
    monkeypatch.setattr(replay_buffer, "tq", queue)
    monkeypatch.setattr(replay, "transfer_queue", queue)
    return queue


def make(kind: type[EagerReplayBuffer], mode: str, **options: Any) -> EagerReplayBuffer:
    refilled: list[int] = []
    buffer = kind(
        trainer_mode=mode,
        trainer_config={},
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs={"rollouts": 3, **options},
        refill_fn=refilled.append,
    )
    buffer.refilled = refilled  # type: ignore[attr-defined]
    return buffer


def test_in_sync_mode_a_group_of_one_is_not_trained_on(queue: Queue) -> None:
    batch, metrics = make(EagerReplayBuffer, "sync").sample(1, "train", 3)
    assert sorted(batch.keys) == ["torn_0_0", "torn_2_0", "whole_0_0", "whole_1_0"]
    assert metrics["training/infrastructure/excluded_trajectories"] == 5


def test_in_sync_mode_it_can_be_replaced(queue: Queue) -> None:
    buffer = make(EagerReplayBuffer, "sync", gen_batch_size=1)
    batch, metrics = buffer.sample(1, "train", 2)
    assert {key.split("_")[0] for key in batch.keys} == {"whole", "torn"}
    assert metrics["training/rollout_failure/evicted_samples"] == 1


def test_in_asynchronous_modes_verl_replaces_every_group_that_failed(queue: Queue) -> None:
    buffer = make(EagerReplayBufferAsync, "colocate_async")
    batch, metrics = buffer.sample(1, "train", 1)
    assert sorted(batch.keys) == ["whole_0_0", "whole_1_0"]
    assert metrics["training/rollout_failure/evicted_samples"] == 2
    assert buffer.refilled == [2]  # type: ignore[attr-defined]
