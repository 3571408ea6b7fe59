"""The reward entry, called as verl calls it."""

from __future__ import annotations

from typing import Any

import pytest

from deepeyes_plugins.hosts.verl.reward import TRAJECTORY_FIELD, compute_score
from deepeyes_plugins.plugins import UnknownNameError
from deepeyes_plugins.protocol.observations import code_observation
from deepeyes_plugins.rollout import EndReason, Trajectory, TurnRecord

CROP = "<think>Look.</think>\n<code>\n```python\nimage_1\n```\n</code>"
ANSWER = "<think>It is red.</think>\n<answer>red</answer>"


def recorded(*turns: str) -> dict[str, str]:
    trajectory = Trajectory(
        task_id="1",
        turns=[
            TurnRecord(text=text, tool="python" if "<code>" in text else None) for text in turns
        ],
        end_reason=EndReason.ANSWER,
    )
    return {TRAJECTORY_FIELD: trajectory.model_dump_json(), "index": "1"}


async def test_a_right_answer_in_good_form_earns_everything() -> None:
    result = await compute_score("perception", "", "red", recorded(CROP, ANSWER))
    assert result["score"] == pytest.approx(1.0)
    assert (result["acc"], result["format"]) == (1.0, 1.0)
    assert (result["turns"], result["tool_calls"]) == (2.0, 1.0)


async def test_a_wrong_answer_in_good_form_earns_the_format_part() -> None:
    result = await compute_score("perception", "", "blue", recorded(CROP, ANSWER))
    assert result["score"] == pytest.approx(0.2)


async def test_all_results_are_finite_numbers_under_the_same_names() -> None:
    good = await compute_score("perception", "", "red", recorded(CROP, ANSWER))
    bad = await compute_score("perception", "rubbish", "red", {})
    assert good.keys() == bad.keys()
    assert all(isinstance(value, float) for value in {**good, **bad}.values())


async def test_without_a_trajectory_the_turns_are_recovered_from_the_text() -> None:
    (observation,) = code_observation("<answer>blue</answer>", "")
    solution = f"{CROP[7:]}\nuser\n{observation}\nassistant\n{ANSWER}"
    result = await compute_score("perception", solution, "red", {"index": "1"})
    assert result["turns"] == 2.0
    assert result["score"] == pytest.approx(1.0)


async def test_an_unknown_data_source_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"percepton.*Did you mean 'perception'"):
        await compute_score("percepton", "", "red", recorded(ANSWER))


@pytest.mark.parametrize("absent", [None, float("nan"), " "])
async def test_an_answer_without_a_reference_is_not_scored(absent: Any) -> None:
    with pytest.raises(ValueError, match="no ground truth for row 7 of data source 'perception'"):
        await compute_score("perception", "<answer>nan</answer>", absent, {"index": 7})
