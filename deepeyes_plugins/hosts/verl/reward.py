"""Reward function for verl (``reward.custom_reward_function.path=pkg://deepeyes_plugins.hosts.verl.reward``)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from deepeyes_plugins.hosts.verl.judge_preflight import stopping_judge
from deepeyes_plugins.hosts.verl.solution import recover_trajectory
from deepeyes_plugins.protocol.content import Message
from deepeyes_plugins.protocol.missing import is_missing, text_of
from deepeyes_plugins.rewards.scorer import Scorer
from deepeyes_plugins.rollout import Task, Trajectory
from deepeyes_plugins.settings import load_settings

TRAJECTORY_FIELD = "deepeyes_trajectory"
"""Key of ``extra_info`` with the agent loop's trajectory as JSON."""

_scorers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str | None, Scorer]] = (
    WeakKeyDictionary()
)


def shared_scorer(agent_config: str | None) -> Scorer:
    """Return the scorer of the running event loop, created on first use.

    Args:
        agent_config: An agent.yaml, or ``None`` for ``DEEPEYES_AGENT_CONFIG`` or the defaults.
    """
    scorers = _scorers.setdefault(asyncio.get_running_loop(), {})
    if agent_config not in scorers:
        settings = load_settings(agent_config)
        judge = stopping_judge(settings.judge)
        scorers[agent_config] = Scorer(settings.rewards, judge, settings.plugins)
    return scorers[agent_config]


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
        data_source: Data source, which selects the reward.
        solution_str: Decoded response; used only without a trajectory.
        ground_truth: Reference answer.
        extra_info: The row's ``extra_info`` with the agent loop's fields.
        agent_config: An agent.yaml (``reward.custom_reward_function.reward_kwargs``).

    Returns:
        ``score`` and its named parts, and counts of turns, tool calls, images and failures. The
        names are the same for every row of a run, and all values are finite.

    Raises:
        UnknownNameError: No reward is registered for ``data_source``.
        SettingsError: The reward needs a judge or a package that is missing.
        ValueError: There is no ground truth.
        InfrastructureError: An infrastructure error ended the trajectory, or no judge could be
            reached; verl excludes the session from its group. With
            ``rewards.infrastructure_failure: mark`` the result has ``infrastructure_failed``
            instead.
    """
    row = dict(extra_info or {})
    if is_missing(ground_truth):
        raise ValueError(
            f"no ground truth for row {text_of(row.get('index')) or '?'} of data source "
            f"{data_source!r}: find such rows with `deepeyes data check`"
        )
    recorded = row.pop(TRAJECTORY_FIELD, None)
    trajectory = (
        Trajectory.model_validate_json(recorded) if recorded else recover_trajectory(solution_str)
    )
    task = Task(
        id=trajectory.task_id or text_of(row.get("index")),
        messages=(Message("user", (trajectory.question,)),),
        data_source=data_source,
        ground_truth=str(ground_truth),
        metadata=row,
    )
    scorer = shared_scorer(agent_config)
    result = await scorer.score(task, trajectory)
    return {
        "score": float(result.score),
        **scorer.aligned(data_source, result),
        **{name: float(count) for name, count in trajectory.counts.items()},
    }
