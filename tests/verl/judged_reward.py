"""A reward that is the judge's verdict on whatever was generated."""

from __future__ import annotations

import random
from typing import Any

from deepeyes_plugins.hosts.verl.judge_preflight import StoppingJudge, stopping_judge
from deepeyes_plugins.judge.contracts import Comparison
from deepeyes_plugins.settings import load_settings

_judges: dict[str, StoppingJudge] = {}


async def compute_score(
    data_source: str, solution_str: str, ground_truth: str, agent_config: str, **_: Any
) -> dict[str, float]:
    if agent_config not in _judges:
        judge = stopping_judge(load_settings(agent_config).judge)
        assert judge is not None
        _judges[agent_config] = judge
    comparison = Comparison("?", ground_truth, solution_str or "nothing")
    verdict = await _judges[agent_config].compare("answer", comparison)
    # Scores that differ, so that there is something to learn.
    return {"score": float(verdict.correct) + random.random()}
