"""The advantage estimator ``deepeyes_grpo``: verl's GRPO, except that equal rewards teach nothing.

verl 0.9.1 computes mean and standard deviation of a group in float32. Sixteen rewards of 1.2 then
have a mean that is off by one rounding, a standard deviation of the same size, and an advantage of
+0.106 each: the policy is pushed toward whatever it did. Here both are computed in float64, and a
group has no advantage at all if its rewards differ by no more than rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Spread of equal rewards, relative to the largest of them: four float32 roundings.

A reward is a weighted sum of a few parts, stored as float32. Equal rewards whose parts were added
in another order differ by one or two units in the last place (2**-23 of the value each). Rewards
that are meant to differ do so by parts of at least a thousandth.
"""


def has_spread(rewards: torch.Tensor) -> bool:
    """Whether the rewards of a group differ by more than rounding; one alone does not.

    Args:
        rewards: One per trajectory of the group, in float64.
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
    """Compute the outcome advantage of GRPO, as verl calls its estimators.

    A group without spread gets 0; so does a group of one, which has nothing to be compared with.

    Args:
        token_level_rewards: Shape (trajectories, tokens).
        response_mask: The same shape; 1 on tokens of the policy.
        index: The group of each trajectory.
        epsilon: Added to the standard deviation.
        norm_adv_by_std_in_grpo: Divide by the standard deviation. By default as ``config`` says:
            verl hands the key to its own ``grpo`` as an argument, to other estimators only there.
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
