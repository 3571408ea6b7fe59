"""Advantage estimator ``deepeyes_grpo``: GRPO with zero advantage for groups of equal rewards.

verl 0.9.1 computes a group's mean and standard deviation in float32. The mean of sixteen rewards of
1.2 is then off by one rounding error, the standard deviation is of the same size, and each rollout
gets the advantage +0.106. Here both are computed in float64, and the advantage is 0 if the rewards
of a group differ by no more than rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Maximum spread of equal rewards, relative to the largest: four float32 rounding errors.

A reward is a weighted sum of a few parts, stored as float32. Equal rewards whose parts were added
in another order differ by one or two units in the last place (2**-23 of the value each). Rewards
that really differ do so by at least a thousandth.
"""


def has_spread(rewards: torch.Tensor) -> bool:
    """Return whether the rewards of a group differ by more than rounding.

    Args:
        rewards: One per trajectory of the group, in float64. A single reward has no spread.
    """
    spread = rewards.max() - rewards.min()
    return not bool(spread <= ROUNDING * rewards.abs().max())


def compute_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: Sequence[Any],
    epsilon: float = 1e-6,
    norm_adv_by_std_in_grpo: bool | None = None,
    config: Mapping[str, Any] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute GRPO's outcome advantage, with the signature of verl's estimators.

    The advantage is 0 in groups without spread and in groups of one.

    Args:
        token_level_rewards: Shape (trajectories, tokens).
        response_mask: The same shape; 1 for tokens of the policy.
        index: The group of each trajectory.
        epsilon: Added to the standard deviation.
        norm_adv_by_std_in_grpo: Divide by the standard deviation. Defaults to the key in
            ``config``: verl passes it as an argument to its own ``grpo`` only.
        config: verl's section ``algorithm``.

    Returns:
        Advantages and returns, which are the same.
    """
    normalized = norm_adv_by_std_in_grpo
    if normalized is None:
        normalized = config is None or bool(config.get("norm_adv_by_std_in_grpo", True))
    groups: defaultdict[Any, list[int]] = defaultdict(list)
    for at, group in enumerate(index):
        groups[group].append(at)
    with torch.no_grad():
        rewards = token_level_rewards.sum(dim=-1, dtype=torch.float64)
        advantages = torch.zeros_like(rewards)
        for members in groups.values():
            own = rewards[members]
            if has_spread(own):
                scale = own.std() + epsilon if normalized else 1.0
                advantages[members] = (own - own.mean()) / scale
        tokens = advantages.to(token_level_rewards.dtype).unsqueeze(-1) * response_mask
    return tokens, tokens
