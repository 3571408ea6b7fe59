"""The DeepEyesV2 scores, by data source, and what cannot change them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from deepeyes_plugins.plugins import UnknownNameError
from deepeyes_plugins.rewards.scores import ScoreWeights
from deepeyes_plugins.rewards.scoring import Scorer
from deepeyes_plugins.rollout import EndReason, RewardResult, Task, Trajectory, TurnRecord
from deepeyes_plugins.rollout.trajectory import PartRecord
from deepeyes_plugins.settings import AgentSettings

CODE = "<think>Look.</think>\n<code>\n```python\n1\n```\n</code>"
CALL = '<think>Ask.</think>\n<tool_call>\n{"name": "search"}\n</tool_call>'
RIGHT = "<think>Seen.</think><answer>red</answer>"
WRONG = "<think>Seen.</think><answer>blue</answer>"
SLOPPY = "<think>Seen.</think></think><answer>red</answer>"


def code(output: str = "2") -> TurnRecord:
    return TurnRecord(text=CODE, tool="python", observation=[PartRecord(text=output)])


def search(tool: str = "search") -> TurnRecord:
    return TurnRecord(text=CALL, tool=tool, observation=[PartRecord(text="found")])


def say(text: str) -> TurnRecord:
    return TurnRecord(text=text)


async def score(
    source: str,
    *turns: TurnRecord,
    truth: str = "red",
    settings: AgentSettings | None = None,
) -> RewardResult:
    task = Task("task-1", (), data_source=source, ground_truth=truth)
    trajectory = Trajectory(task_id="task-1", turns=list(turns), end_reason=EndReason.ANSWER)
    return await Scorer(settings or AgentSettings()).score(task, trajectory)


@pytest.mark.parametrize("source", ["perception", "reason", "search"])
@pytest.mark.parametrize(
    ("answer", "expected"), [(RIGHT, 1.0), (WRONG, 0.2), (SLOPPY, 0.8), ("<think>Hm.", 0.0)]
)
async def test_accuracy_and_format(source: str, answer: str, expected: float) -> None:
    result = await score(source, code(), say(answer))
    assert result.score == pytest.approx(expected)
    assert result.parts["acc"] == float(answer in (RIGHT, SLOPPY))
    assert result.parts["format"] == float(answer in (RIGHT, WRONG))


@pytest.mark.parametrize("tool", ["search", "image_search"])
async def test_searching_costs_a_tenth_of_the_accuracy_once(tool: str) -> None:
    for calls in (1, 3):
        result = await score("search", *[search(tool)] * calls, say(RIGHT))
        assert result.score == pytest.approx(0.8 * 0.9 + 0.2)
        assert result.parts["search_penalty"] == pytest.approx(0.1)


async def test_searching_is_free_elsewhere_and_code_everywhere() -> None:
    assert (await score("perception", search(), say(RIGHT))).score == pytest.approx(1.0)
    assert (await score("search", code(), say(RIGHT))).score == pytest.approx(1.0)


@pytest.mark.parametrize(("source", "expected"), [("perception", 0), ("search", 0), ("reason", 1)])
@pytest.mark.parametrize("length", [299, 300])
async def test_long_answers_score_nothing(source: str, expected: float, length: int) -> None:
    """300 characters and more are an attempt to talk to the judge."""
    answer = "x" * length
    result = await score(source, say(f"<think></think><answer>{answer}</answer>"), truth=answer)
    assert result.score == pytest.approx(1.0 if length == 299 else expected)


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [("red", "red", 1.0), ("A. red", "A", 1.0), ("Red, I think", "red", 1.0), ("blue", "red", 0.0)],
)
async def test_vstar_validation_is_accuracy_alone(answer: str, truth: str, expected: float) -> None:
    result = await score("vstar-test", say(f"<answer>{answer}</answer>"), truth=truth)
    assert result.score == expected


class TestNothingButTheModelsOwnWordsCounts:
    @pytest.mark.parametrize(
        "output",
        ["</think>", "<think>", "<code>", "</code>", "<tool_call>", "<answer>blue</answer>", RIGHT],
    )
    async def test_tags_in_tool_output(self, output: str) -> None:
        for source in ("perception", "search"):
            assert (await score(source, code(output), say(RIGHT))).score == pytest.approx(1.0)
            assert (await score(source, code(output), say(WRONG))).score == pytest.approx(0.2)

    @pytest.mark.parametrize(
        "stuffed",
        [
            "<think></think><answer>blue</answer><answer>red</answer>",
            "<think><answer>red</answer></think><answer>blue</answer>",
            "<think></think><answer>blue</answer></think><answer>red",
            "<think></think><answer>blue or red</answer>",
            "<think></think><answer><answer>red</answer></answer>",
            "<think></think><answer>blue</answer>red",
        ],
    )
    async def test_more_tags_do_not_make_it_right(self, stuffed: str) -> None:
        assert (await score("perception", say(stuffed))).parts["acc"] == 0.0

    async def test_an_early_answer_does_not_count(self) -> None:
        assert (await score("perception", say(RIGHT), code())).score == 0.0

    async def test_no_turns_at_all(self) -> None:
        assert (await score("perception")).score == 0.0


class TestChoosingAReward:
    async def test_settings_name_the_reward_of_other_data(self) -> None:
        settings = AgentSettings.model_validate({"rewards": {"sources": {"mine": "perception"}}})
        assert (await score("mine", say(RIGHT), settings=settings)).score == pytest.approx(1.0)

    async def test_unknown_data_source(self) -> None:
        with pytest.raises(UnknownNameError) as error:
            await score("perceptoin", say(RIGHT))
        message = str(error.value)
        assert "data source 'perceptoin'" in message
        assert "Did you mean 'perception'?" in message
        assert "perception, reason, search, vstar-test" in message
        assert "rewards.sources in agent.yaml" in message

    async def test_settings_that_name_an_unknown_reward(self) -> None:
        settings = AgentSettings.model_validate({"rewards": {"sources": {"mine": "nothing"}}})
        with pytest.raises(UnknownNameError, match=r"data source 'mine'.*unknown reward 'nothing'"):
            await score("mine", say(RIGHT), settings=settings)


@pytest.mark.parametrize("wrong", [{"accuracy": -1}, {"search_penalty": 2}, {"bonus": 1}])
def test_weights_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ScoreWeights.model_validate(wrong)
