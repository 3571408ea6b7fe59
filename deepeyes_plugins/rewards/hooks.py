"""Extension point for rewards."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from deepeyes_plugins.plugins import Registry, collect, hookspec

if TYPE_CHECKING:
    from deepeyes_plugins.rewards.contracts import RewardFactory


@hookspec
def register_rewards(register: Callable[[str, RewardFactory | str], None]) -> None:
    """Add rewards by data source: ``factory(resources)`` makes a ``Reward``."""


@cache
def rewards() -> Registry[RewardFactory]:
    """Reward factories by data source."""
    return collect("reward", register_rewards)
