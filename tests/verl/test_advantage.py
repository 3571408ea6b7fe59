"""The advantage of a group: equal rewards teach nothing, other groups get what verl gives them."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from verl.protocol import DataProto
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, get_adv_estimator_fn
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

RL_PAGE = Path(__file__).parents[2] / "docs/rl.md"
OURS = "deepeyes_grpo"
PAID = (1.2, 1.0, 0.8, 0.2, 0.0, -0.2, 1.4, 1 / 3, 0.1 + 0.2)
"""Rewards as docs/rewards.md has them, and some that binary fractions cannot hold."""


def estimate(
    name: str,
    rewards: Sequence[float],
    groups: Sequence[str],
    mask: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> torch.Tensor:
    """Return advantages by token; a reward stands on the last token of a response, as in verl."""
    by_token = torch.zeros(len(rewards), 3, dtype=dtype)
    by_token[:, -1] = torch.tensor(rewards, dtype=dtype)
    advantages, returns = get_adv_estimator_fn(name)(
        token_level_rewards=by_token,
        response_mask=torch.ones(len(rewards), 3) if mask is None else mask,
        index=np.array(groups, dtype=object),
        **options,
    )
    assert torch.equal(advantages, returns)
    return advantages


@pytest.mark.parametrize("count", [2, 3, 8, 16, 64])
@pytest.mark.parametrize("reward", PAID)
def test_a_group_whose_rewards_are_equal_teaches_nothing(reward: float, count: int) -> None:
    assert not estimate(OURS, [reward] * count, ["a"] * count).any()
    assert not estimate(OURS, [reward] * count, ["a"] * count, norm_adv_by_std_in_grpo=False).any()


def test_verls_own_estimator_pushes_such_a_group() -> None:
    """What docs/rl.md says; verl has mended it when this fails."""
    [found, *_] = estimate("grpo", [1.2] * 16, ["a"] * 16)[:, 0].tolist()
    assert found == pytest.approx(0.106, abs=0.001)


def test_rewards_that_differ_by_the_order_of_a_sum_are_equal() -> None:
    parts = [0.8 + 0.2 + 0.2, 0.2 + 0.2 + 0.8, 1.2, float(np.nextafter(np.float32(1.2), 2))]
    assert len({np.float32(part).item() for part in parts}) > 1
    assert not estimate(OURS, parts, ["a"] * len(parts)).any()


@pytest.mark.parametrize("step", [1e-3, 1e-5])
def test_rewards_that_differ_by_little_are_not(step: float) -> None:
    better, worse = estimate(OURS, [1.2 + step, 1.2], ["a", "a"])[:, 0].tolist()
    assert better == -worse > 0.5


def test_a_group_of_one_teaches_nothing_wherever_it_stands() -> None:
    found = estimate(OURS, [1.0, 1.2, 0.0], ["a", "alone", "a"])
    assert not found[1].any()
    assert found[0, 0] == -found[2, 0] == pytest.approx(2**-0.5, abs=1e-5)


batches = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(PAID), st.lists(st.booleans(), max_size=3)),
    min_size=1,
    max_size=40,
)
"""Groups of uneven size whose members stand among each other, with masks of their own."""


@given(batches, st.booleans())
@example([("a", 1.2, [])] * 15 + [("a", 1.0, [])], True)
def test_groups_with_spread_get_what_verl_gives_them(
    batch: list[tuple[str, float, list[bool]]], normalized: bool
) -> None:
    groups, rewards, kept = map(list, zip(*batch, strict=True))
    mask = torch.tensor([(flags + [True] * 3)[:3] for flags in kept], dtype=torch.float32)
    earned = {group: {reward for name, reward, _ in batch if name == group} for group in groups}
    spread = [len(earned[group]) > 1 for group in groups]
    ours = estimate(
        OURS, rewards, groups, mask, config=AlgoConfig(norm_adv_by_std_in_grpo=normalized)
    )
    # verl's own code without its rounding: it computes in the type that it is given.
    exact = [float(np.float32(reward)) for reward in rewards]
    verls = estimate("grpo", exact, groups, mask, torch.float64, norm_adv_by_std_in_grpo=normalized)
    torch.testing.assert_close(ours[spread].double(), verls[spread], rtol=1e-6, atol=1e-6)
    assert not ours[[not each for each in spread]].any()
    assert not ours[mask == 0].any()


@pytest.mark.parametrize("size", [2, 3, 8, 16])
def test_published_rewards_get_what_verl_gives_them_in_its_own_precision(size: int) -> None:
    """Which is 1.3e-6 off at worst."""
    for right in range(1, size):
        for reward, other in itertools.combinations(PAID[:6], 2):
            rewards = [reward] * right + [other] * (size - right)
            ours, verls = (estimate(name, rewards, ["a"] * size) for name in (OURS, "grpo"))
            torch.testing.assert_close(ours, verls, rtol=0, atol=2e-6)


def test_the_trainer_reaches_it_with_the_key_that_verl_hands_only_to_its_own() -> None:
    """Through the function that verl's trainer calls, with the recipe's section ``algorithm``."""

    def trained(**algorithm: Any) -> list[float]:
        rewards = torch.tensor([[0.0, 1.2], [0.0, 0.2], [0.0, 0.2]])
        batch = DataProto.from_dict(
            {"token_level_rewards": rewards, "response_mask": torch.ones(3, 2)},
            non_tensors={"uid": ["a"] * 3},
        )
        config = AlgoConfig(adv_estimator=OURS, **algorithm)
        result = compute_advantage_for_multi_trajectories(
            batch,
            ["a_0_0", "a_1_0", "a_2_0"],
            OURS,
            norm_adv_by_std_in_grpo=config.norm_adv_by_std_in_grpo,
            config=config,
        )
        return result.batch["advantages"][:, 0].tolist()

    assert trained() == pytest.approx([1.1547, -0.5774, -0.5774], abs=1e-4)
    assert trained(norm_adv_by_std_in_grpo=False) == pytest.approx([2 / 3, -1 / 3, -1 / 3])


def alone(name: str, reward: float) -> str:
    """What an estimator gives a response that is alone in its group, beside a group of four."""
    rewards = torch.zeros(5, 2)
    rewards[:, 1] = torch.tensor([reward, 1.0, 0.0, 0.0, 1.0])
    everything = {
        "token_level_rewards": rewards,
        "response_mask": torch.ones(5, 2),
        "index": np.array(list("abbbb"), dtype=object),
        "config": AlgoConfig(adv_estimator=name),
        "values": torch.zeros(5, 2),
        "gamma": 1.0,
        "lam": 1.0,
        "reward_baselines": torch.zeros(5),
        "old_log_probs": torch.full((5, 2), -1.0),
        "sum_pi_squared": torch.full((5, 2), 0.5),
    }
    estimator = get_adv_estimator_fn(name)
    wanted = inspect.signature(estimator).parameters
    try:
        advantages, _ = estimator(**{key: everything[key] for key in wanted if key in everything})
    except ValueError:
        return "refused"
    return f"{advantages[0, 0].item():+.2f}".replace("+0.00", "0").replace("-", "−")


def test_the_page_says_what_each_estimator_gives_a_group_of_one() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \|", RL_PAGE.read_text(), re.MULTILINE)
    written = {name: values for name, *values in rows if name in ADV_ESTIMATOR_REGISTRY}
    assert written == {
        name: [alone(name, 1.0), alone(name, 0.2)] for name in ADV_ESTIMATOR_REGISTRY
    }
