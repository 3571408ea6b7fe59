"""Contracts of rewards: resources and factories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deepeyes_plugins.judge.contracts import Judge
from deepeyes_plugins.rewards.algebra import Algebra
from deepeyes_plugins.rewards.settings import RewardSettings
from deepeyes_plugins.rollout.contracts import Reward


@dataclass(frozen=True, slots=True)
class RewardResources:
    """Resources of a reward.

    Attributes:
        settings: The section ``rewards`` of the settings.
        judge: The configured judge, if any.
        plugins: Settings of third-party plugins, by plugin name.
        algebra: Compares mathematical expressions.
    """

    settings: RewardSettings
    judge: Judge | None = None
    plugins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    algebra: Algebra = field(default_factory=Algebra)


RewardFactory = Callable[[RewardResources], Reward]
"""Creates a reward. Its attribute ``parts`` lists the names of the reward's parts, because trainers
need the same names for every row of a batch, whatever its data source."""
