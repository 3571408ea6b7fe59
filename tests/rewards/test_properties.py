"""Whatever a model writes: scores are finite, within their range, and found in linear time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deepeyes_plugins.rewards.format import (
    boxed_answer,
    final_answer,
    is_well_formed,
    is_well_formed_boxed,
    is_well_formed_toolbox,
)
from deepeyes_plugins.rewards.guards import lists_alternatives, speaks_to_judge
from deepeyes_plugins.rewards.mathematics import mathematics_verdict
from deepeyes_plugins.rewards.scores import DeepEyesScore
from deepeyes_plugins.rollout import EndReason, Task, Trajectory, TurnRecord
from deepeyes_plugins.rollout.trajectory import PartRecord
from tests.rewards.judges import CALL, CODE, ScriptedJudge, scorer

TAGS = [
    f"<{slash}{name}>" for name in ("think", "code", "answer", "tool_call") for slash in ("", "/")
]
PIECES = st.sampled_from([*TAGS, r"\boxed{", "}", "```python\n", "\n```\n", CODE, CALL, "red"])
WORDS = st.lists(PIECES | st.text(max_size=8), max_size=12).map("".join)
OPTIONS = {"tool": 0.2, "cumulative_tool": 0.3, "math_verify": False}


@st.composite
def turns(draw: st.DrawFn) -> TurnRecord:
    return TurnRecord(
        text=draw(WORDS),
        action=draw(st.sampled_from([None, "code", "tool_call", "answer", "malformed"])),
        tool=draw(st.sampled_from([None, "python", "search", "image_zoom_in_tool"])),
        error=draw(st.none() | st.text(max_size=5)),
        observation=draw(
            st.none() | st.just([PartRecord(text="</think>"), PartRecord(image="a" * 64)])
        ),
    )


@hypothesis_settings(max_examples=150)
@given(
    st.sampled_from(["perception", "reason", "search", "vstar-test", "vstar", "thinklite_eureka"]),
    st.lists(turns(), max_size=5),
    st.text(min_size=1, max_size=20),
    st.booleans(),
    st.booleans(),
)
@example("vstar", [], "red", True, True)
def test_scores_are_finite_and_within_their_range(
    source: str, played: list[TurnRecord], truth: str, verdict: bool, generous: bool
) -> None:
    section = OPTIONS if generous else {"math_verify": False}
    judging = scorer(ScriptedJudge(verdict), {source: section})
    task = Task("1", (), data_source=source, ground_truth=truth)
    trajectory = Trajectory(task_id="1", turns=played, end_reason=EndReason.TURNS)
    result = asyncio.run(judging.score(task, trajectory))
    reward = judging.reward_for(source)
    assert isinstance(reward, DeepEyesScore)
    lowest, highest = reward.bounds
    assert lowest - 1e-9 <= result.score <= highest + 1e-9
    assert all(math.isfinite(value) for value in result.parts.values())


def test_the_documented_ranges() -> None:
    bounds = {
        "perception": (0.0, 1.0),
        "reason": (0.0, 1.0),
        "search": (0.0, 1.0),
        "vstar-test": (0.0, 1.0),
        "vstar": (-0.2, 2.0),
        "chart": (-0.2, 2.0),
        "thinklite_eureka": (-0.4, 1.2),
    }
    for source, expected in bounds.items():
        reward = scorer(ScriptedJudge()).reward_for(source)
        assert isinstance(reward, DeepEyesScore)
        assert reward.bounds == pytest.approx(expected)


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(lambda text: is_well_formed([text], tool_calls=True), id="format"),
        pytest.param(lambda text: is_well_formed_toolbox([text]), id="V1 format"),
        pytest.param(lambda text: is_well_formed_boxed([text]), id="boxed format"),
        pytest.param(lambda text: final_answer([text]), id="answer"),
        pytest.param(lambda text: boxed_answer([text]), id="boxed answer"),
        pytest.param(lambda text: mathematics_verdict(text, "x+1"), id="mathematics"),
        pytest.param(lambda text: lists_alternatives(text, "red"), id="alternatives"),
        pytest.param(lambda text: lists_alternatives(text, "A"), id="options"),
        pytest.param(lambda text: speaks_to_judge(text), id="speaking to the judge"),
    ],
)
@pytest.mark.parametrize(
    "piece",
    [
        *TAGS,
        "<answer></answer>",
        r"\boxed{",
        r"\boxed{}",
        " ",
        "\n",
        "a ",
        "A, ",
        "or ",
        "ignore ",
        "$",
        "{",
        ".",
        "1,",
        r"\text{",
        r"\frac",
        "**",
        "=",
        "the answer ",
        "(A) ",
    ],
)
def test_time_is_linear_in_the_text(check: Callable[[str], object], piece: str) -> None:
    """The longest response, 16 k tokens, takes well under a second; quadratic time is minutes."""
    text = piece * (80_000 // len(piece))
    started = time.process_time()
    check(text)
    assert time.process_time() - started < 2.0
