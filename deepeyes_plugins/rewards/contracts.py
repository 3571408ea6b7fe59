"""How rewards are made."""

from __future__ import annotations

from collections.abc import Callable

from deepeyes_plugins.rollout.contracts import Reward
from deepeyes_plugins.settings import AgentSettings

RewardFactory = Callable[[AgentSettings], Reward]
