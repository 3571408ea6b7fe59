"""How rewards are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from deepeyes_plugins.judge.contracts import Judge
from deepeyes_plugins.rewards.algebra import Algebra
from deepeyes_plugins.rollout.contracts import Reward
from deepeyes_plugins.settings import AgentSettings


@dataclass(frozen=True, slots=True)
class RewardResources:
    """What a reward may use.

    Attributes:
        settings: All settings; those of a plugin are under ``settings.plugins``.
        judge: The judge that the settings name; ``None`` where they name none.
        algebra: Compares mathematical expressions.
    """

    settings: AgentSettings
    judge: Judge | None = None
    algebra: Algebra = field(default_factory=Algebra)


RewardFactory = Callable[[RewardResources], Reward]
"""Makes a reward. The names of its parts stand in its attribute ``parts``, a sequence of strings:
trainers need the same names for every row of a batch, whatever its data source."""
