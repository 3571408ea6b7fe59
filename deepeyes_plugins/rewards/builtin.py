"""The rewards of this package, registered like anybody else's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from deepeyes_plugins.hookspecs import hookimpl
from deepeyes_plugins.rewards.contracts import RewardFactory
from deepeyes_plugins.rewards.scores import ScoreWeights, WeightedScore
from deepeyes_plugins.rollout.contracts import Reward
from deepeyes_plugins.settings import AgentSettings

LONGEST_ANSWER = 300
"""Characters; from there on perception and search score nothing (Visual-Agent/DeepEyesV2)."""

_WEIGHTS = {
    "perception": ScoreWeights(longest_answer=LONGEST_ANSWER),
    "reason": ScoreWeights(),
    "search": ScoreWeights(longest_answer=LONGEST_ANSWER, search_penalty=0.1, tool_calls=True),
    "vstar-test": ScoreWeights(accuracy=1.0, form=0.0, prefix=True),
}


def _make(weights: ScoreWeights, settings: AgentSettings) -> Reward:
    del settings
    return WeightedScore(weights)


@hookimpl
def register_rewards(register: Callable[[str, RewardFactory], None]) -> None:
    """Register the rewards of DeepEyesV2 under their data sources."""
    for source, weights in _WEIGHTS.items():
        register(source, partial(_make, weights))
