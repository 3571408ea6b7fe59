"""The reward entry: ``reward.custom_reward_function.path=pkg://deepeyes_plugins.hosts.verl.reward``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from deepeyes_plugins.rewards.scoring import Scorer
from deepeyes_plugins.rollout import EndReason, Task, Trajectory, TurnRecord
from deepeyes_plugins.settings import load_settings

TRAJECTORY_FIELD = "deepeyes_trajectory"
"""Key of ``extra_info`` under which the agent loop hands over its trajectory, as JSON."""

_OBSERVATION = re.compile(
    r"\n?user\n(?:Code execution result:|<tool_response>).*?\nassistant\n", re.DOTALL
)


@lru_cache(maxsize=8)
def _scorer(agent_config: str | None) -> Scorer:
    return Scorer(load_settings(agent_config))


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    agent_config: str | None = None,
    **_: Any,
) -> dict[str, float]:
    """Score one response, with verl's signature.

    Args:
        data_source: Chooses the reward.
        solution_str: The decoded response; used only where there is no trajectory.
        ground_truth: The reference answer.
        extra_info: The row's ``extra_info`` with the agent loop's fields.
        agent_config: An agent.yaml (``reward.custom_reward_function.reward_kwargs``).

    Returns:
        ``score`` and its named parts, with counts of turns, tool calls and failures of ours.

    Raises:
        UnknownNameError: No reward is registered for ``data_source``.
    """
    recorded = (extra_info or {}).get(TRAJECTORY_FIELD)
    trajectory = (
        Trajectory.model_validate_json(recorded) if recorded else recover_trajectory(solution_str)
    )
    task = Task(
        id=trajectory.task_id,
        messages=(),
        data_source=data_source,
        ground_truth=str(ground_truth),
        metadata=dict(extra_info or {}),
    )
    result = await _scorer(agent_config).score(task, trajectory)
    return {
        "score": result.score,
        **result.parts,
        "turns": float(len(trajectory.turns)),
        "tool_calls": float(sum(trajectory.tool_calls.values())),
        "images": float(trajectory.images_returned),
        "failed_actions": float(sum(turn.error is not None for turn in trajectory.turns)),
        "infrastructure_errors": float(trajectory.infrastructure_errors),
    }


def recover_trajectory(solution_str: str) -> Trajectory:
    """Rebuild the assistant's turns of a decoded response, for hosts that kept no trajectory."""
    turns = [TurnRecord(text=text) for text in _OBSERVATION.split(solution_str)]
    return Trajectory(task_id="", turns=turns, end_reason=EndReason.NO_ACTION)
