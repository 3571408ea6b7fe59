"""The published scores, by data source, and the options that are off by default."""

from __future__ import annotations

import logging

import pytest
from pydantic import ValidationError

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.judge.contracts import (
    Comparison,
    JudgeOutageError,
    PromptName,
    Verdict,
)
from deepeyes_plugins.plugins import Registry, UnknownNameError
from deepeyes_plugins.rewards import scorer as scoring
from deepeyes_plugins.rewards.hooks import rewards
from deepeyes_plugins.rewards.scores import PARTS
from deepeyes_plugins.rewards.settings import RewardSettings
from deepeyes_plugins.rollout import (
    EndReason,
    InfrastructureError,
    RewardResult,
    Task,
    Trajectory,
)
from deepeyes_plugins.settings import load_settings
from tests.rewards.judges import (
    RIGHT,
    WRONG,
    AbsentJudge,
    ScriptedJudge,
    answer,
    code,
    python,
    say,
    score,
    scorer,
    search,
    settings,
    zoom,
)

SLOPPY = "<think>Seen.</think></think><answer>red</answer>"
SILENT = "<think>Hm."
PUBLISHED = ["perception", "reason", "search", "vstar-test", "vstar", "chart", "thinklite_eureka"]


@pytest.mark.parametrize("source", ["perception", "reason", "search"])
@pytest.mark.parametrize(
    ("ending", "expected"), [(RIGHT, 1.0), (WRONG, 0.2), (SLOPPY, 0.8), (SILENT, 0.0)]
)
async def test_accuracy_and_format(source: str, ending: str, expected: float) -> None:
    result = await score(source, code(), say(ending))
    assert result.score == pytest.approx(expected)
    assert result.parts["acc"] == float(ending in (RIGHT, SLOPPY))
    assert result.parts["format"] == float(ending in (RIGHT, WRONG))


@pytest.mark.parametrize("tool", ["search", "image_search"])
async def test_searching_costs_a_tenth_of_the_accuracy_once(tool: str) -> None:
    for calls in (1, 3):
        result = await score("search", *[search(tool)] * calls, say(RIGHT))
        assert result.score == pytest.approx(0.8 * 0.9 + 0.2)
        assert result.parts["search_penalty"] == pytest.approx(0.1)


async def test_searching_is_free_elsewhere_and_code_everywhere() -> None:
    assert (await score("perception", search(), say(RIGHT))).score == pytest.approx(1.0)
    assert (await score("search", code(), say(RIGHT))).score == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "truth", "expected"),
    [("red", "red", 1.0), ("A. red", "A", 1.0), ("Red, I think", "red", 1.0), ("blue", "red", 0.0)],
)
async def test_vstar_validation_is_accuracy_alone(text: str, truth: str, expected: float) -> None:
    result = await score("vstar-test", say(f"<answer>{text}</answer>"), truth=truth)
    assert result.score == expected


class TestDeepEyesV1:
    @pytest.mark.parametrize("source", ["vstar", "chart"])
    @pytest.mark.parametrize(
        ("turns", "expected"),
        [
            pytest.param([zoom(), say(RIGHT)], 0.8 + 1.2, id="right with an image"),
            pytest.param([say(RIGHT)], 0.8, id="right without"),
            pytest.param([zoom(image=False), say(RIGHT)], 0.8, id="the tool brought no image"),
            pytest.param([zoom(), say(WRONG)], 0.0, id="tools pay for right answers only"),
            pytest.param([zoom(), say(SLOPPY)], 0.8 - 0.2 + 1.2, id="right in bad form"),
            pytest.param([zoom(), say(SILENT)], -0.2, id="no answer"),
            pytest.param([say("<answer>red</answer>")], 0.8, id="thinking is optional"),
        ],
    )
    async def test_zooming(self, source: str, turns: list, expected: float) -> None:
        assert (await score(source, *turns)).score == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (r"<think>x</think>So \boxed{\frac{1}{2}}.", 1.2),
            (r"<think>x</think>So \boxed{0.5}.", 1.2),
            (r"<think>x</think>So \boxed{3}.", -0.0),
            (r"<think>x</think>\boxed{3} or \boxed{\frac12}", 1.2 - 0.4),
            (r"<think>\boxed{0.5}</think>So it is.", -0.4),
            (r"<think>x</think><answer>0.5</answer>", -0.4),
            (r"<think>x So \boxed{0.5}.", 1.2 - 0.4),
        ],
    )
    async def test_boxed_answers(self, text: str, expected: float) -> None:
        result = await score("thinklite_eureka", say(text), truth=r"\frac{1}{2}")
        assert result.score == pytest.approx(expected)


@pytest.mark.parametrize(
    ("source", "longest"),
    [
        ("perception", 300),
        ("search", 300),
        ("vstar", 1000),
        ("chart", 1000),
        ("reason", None),
        ("vstar-test", None),
    ],
)
async def test_long_answers_score_nothing(source: str, longest: int | None) -> None:
    """So long an answer is an attempt to talk to the judge: it is not asked."""
    for length, refused in ((longest or 2000) - 1, False), (longest or 2000, longest is not None):
        judge, text = ScriptedJudge(True), "x" * length
        result = await score(source, answer(text), truth=text, judge=judge)
        assert result.parts["acc"] == float(not refused)
        assert result.parts["answer_too_long"] == float(refused)
        if refused:
            assert result.score <= 0
            assert not judge.asked


class TestJudge:
    async def test_is_asked_where_rules_are_not_sure(self) -> None:
        judge = ScriptedJudge(lambda comparison: "crimson" in comparison.answer)
        for text, right in ("a crimson one", 1.0), ("a navy one", 0.0):
            result = await score("perception", answer(text), judge=judge)
            assert (result.parts["acc"], result.parts["judged"]) == (right, 1.0)
            assert (result.parts["judge_calls"], result.parts["judge_seconds"]) == (2.0, 0.25)
        prompt, comparison = judge.asked[0]
        assert prompt == "answer"
        assert comparison.question == "What colour is the car?"
        assert (comparison.ground_truth, comparison.answer) == ("red", "a crimson one")

    @pytest.mark.parametrize("source", ["reason", "thinklite_eureka"])
    async def test_judges_mathematics_as_such_and_without_wrapping(self, source: str) -> None:
        judge = ScriptedJudge(True)
        text = r"\boxed{$x = n!$}" if source == "thinklite_eureka" else r"$x = n!$"
        ending = f"<think></think><answer>{text}</answer>"
        result = await score(source, say(ending), truth="m", judge=judge)
        assert result.parts["acc"] == 1.0
        assert [(prompt, seen.answer) for prompt, seen in judge.asked] == [
            ("equivalence", "x = n!")
        ]

    @pytest.mark.parametrize("text", ["red", "Red.", "**red**"])
    async def test_is_not_asked_where_rules_are_sure(self, text: str) -> None:
        judge = ScriptedJudge(False)
        assert (await score("perception", answer(text), judge=judge)).parts["acc"] == 1.0
        result = await score("perception", answer("C. blue"), truth="B", judge=judge)
        assert (result.parts["acc"], result.parts["judged"]) == (0.0, 0.0)
        assert not judge.asked

    async def test_may_be_asked_for_every_answer(self) -> None:
        judge = ScriptedJudge(False)
        rewards = {"perception": {"decide": "judge"}}
        result = await score("perception", say(RIGHT), judge=judge, rewards=rewards)
        assert (result.parts["acc"], len(judge.asked)) == (0.0, 1)

    async def test_may_be_left_out(self) -> None:
        judge = ScriptedJudge(True)
        rewards = {"perception": {"decide": "rules"}}
        assert (await score("perception", say(WRONG), judge=judge, rewards=rewards)).parts[
            "acc"
        ] == 0
        assert not judge.asked

    @pytest.mark.parametrize("source", PUBLISHED)
    @pytest.mark.parametrize("ending", [SILENT, "<think></think><answer> \n</answer>", ""])
    async def test_is_not_asked_without_an_answer(self, source: str, ending: str) -> None:
        judge = ScriptedJudge(True)
        result = await score(source, code(), say(ending), judge=judge)
        assert (result.parts["acc"], result.parts["answered"]) == (0.0, 0.0)
        assert not judge.asked

    async def test_is_closed_with_the_scorer(self) -> None:
        judge = ScriptedJudge()
        await scorer(judge).aclose()
        assert judge.closed


class TestWithoutAJudge:
    async def test_rules_decide_and_that_is_said_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        judging = scorer()
        trajectory = Trajectory(task_id="1", turns=[say(WRONG)], end_reason=EndReason.ANSWER)
        task = Task("1", (), data_source="perception", ground_truth="red")
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert (await judging.score(task, trajectory)).parts["acc"] == 0.0
        said = [record.message for record in caplog.records]
        assert said == ["accuracy of 'perception' is decided by rules: no judge is configured"]

    async def test_nothing_is_said_where_rules_were_chosen(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        await score("perception", say(RIGHT), rewards={"perception": {"decide": "rules"}})
        assert not caplog.records

    async def test_a_source_that_asks_for_one_is_refused(self) -> None:
        with pytest.raises(
            SettingsError, match=r"rewards\.search\.decide is 'judge', but no judge"
        ):
            scorer(rewards={"search": {"decide": "judge"}}).check([("search", "red")])

    def test_references_that_rules_cannot_compare_are_refused_before_the_start(self) -> None:
        sentence = "The man on the left holds an umbrella because it has begun to rain."
        rows = [("perception", sentence)] * 6 + [("perception", "red")] * 94
        with pytest.raises(SettingsError, match=r"6 of 100 rows .*'perception'.*name a judge"):
            scorer().check(rows)
        scorer().check(rows[2:])
        scorer(ScriptedJudge()).check(rows)
        scorer(rewards={"perception": {"decide": "rules"}}).check(rows)


class TestFailuresOfOurs:
    @pytest.mark.parametrize("turns", [[], [say(WRONG)], [say(RIGHT)]])
    async def test_a_trajectory_that_one_ended_has_no_score(self, turns: list) -> None:
        with pytest.raises(InfrastructureError, match="task-1 has no score"):
            await score("perception", *turns, end_reason=EndReason.INFRASTRUCTURE)

    async def test_nor_has_an_answer_that_nobody_can_judge(self) -> None:
        with pytest.raises(InfrastructureError, match="nobody answers"):
            await score("perception", say(WRONG), judge=AbsentJudge())

    async def test_a_judge_that_stays_away_stops_the_run_whatever_is_marked(self) -> None:
        class GoneJudge(ScriptedJudge):
            async def compare(self, prompt: PromptName, comparison: Comparison) -> Verdict:
                raise JudgeOutageError("away for half an hour")

        rewards = {"infrastructure_failure": "mark"}
        with pytest.raises(JudgeOutageError):
            await score("perception", say(WRONG), judge=GoneJudge(), rewards=rewards)

    async def test_or_they_are_marked(self) -> None:
        rewards = {"infrastructure_failure": "mark"}
        failed = await score(
            "perception", say(RIGHT), rewards=rewards, end_reason=EndReason.INFRASTRUCTURE
        )
        unjudged = await score("perception", say(WRONG), rewards=rewards, judge=AbsentJudge())
        fine = await score("perception", say(RIGHT), rewards=rewards)
        for result in failed, unjudged:
            assert result.score == 0.0
            assert {name for name, value in result.parts.items() if value} == {
                "infrastructure_failed"
            }
        assert "infrastructure_failed" not in fine.parts


class TestOptionalBonuses:
    async def test_all_are_off_in_deepeyes_v2(self) -> None:
        for source in ("perception", "reason", "search"):
            assert (await score(source, code(), say(RIGHT))).score == pytest.approx(1.0)

    @pytest.mark.parametrize(
        ("turns", "tool"),
        [
            ([code(), say(RIGHT)], 1.0),
            ([code(), code(), say(RIGHT)], 1.0),
            ([search(), say(RIGHT)], 1.0),
            ([say(RIGHT)], 0.0),
            ([code(), say(WRONG)], 0.0),
            ([code(error="NameError"), say(RIGHT)], 0.0),
            ([python("# nothing"), say(RIGHT)], 0.0),
        ],
    )
    async def test_tool_bonus_for_right_answers(self, turns: list, tool: float) -> None:
        result = await score("perception", *turns, rewards={"perception": {"tool": 0.2}})
        assert result.parts["tool"] == tool
        expected = 0.8 * result.parts["acc"] + 0.2 * result.parts["format"] + 0.2 * tool
        assert result.score == pytest.approx(expected)

    @pytest.mark.parametrize(("calls", "share"), [(0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)])
    async def test_cumulative_bonus_grows_to_its_limit(self, calls: int, share: float) -> None:
        rewards = {"perception": {"cumulative_tool": 0.4}}
        right = await score("perception", *[code()] * calls, say(RIGHT), rewards=rewards)
        wrong = await score("perception", *[code()] * calls, say(WRONG), rewards=rewards)
        assert right.score == pytest.approx(1.0 + 0.4 * share)
        assert wrong.score == pytest.approx(0.2)


class TestChoosingAReward:
    async def test_settings_name_the_reward_of_other_data(self) -> None:
        rewards = {"sources": {"mine": "perception"}}
        assert (await score("mine", say(RIGHT), rewards=rewards)).score == pytest.approx(1.0)

    async def test_unknown_data_source(self) -> None:
        with pytest.raises(UnknownNameError) as error:
            await score("perceptoin", say(RIGHT))
        message = str(error.value)
        assert "data source 'perceptoin'" in message
        assert "Did you mean 'perception'?" in message
        assert "chart, perception, reason, search, thinklite_eureka, vstar, vstar-test" in message
        assert "rewards.sources in agent.yaml" in message

    async def test_settings_that_name_an_unknown_reward(self) -> None:
        with pytest.raises(UnknownNameError, match=r"data source 'mine'.*unknown reward 'nothing'"):
            await score("mine", say(RIGHT), rewards={"sources": {"mine": "nothing"}})


class TestParts:
    async def test_every_source_reports_the_same_names(self) -> None:
        judging = scorer()
        names = {
            tuple(judging.aligned(source, await score(source, say(RIGHT)))) for source in PUBLISHED
        }
        assert names == {(*PARTS, "infrastructure_failed")}

    async def test_a_plugin_declares_its_own(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Politeness:
            parts = ("please",)

            def __init__(self, resources: object) -> None:
                pass

            async def score(self, task: Task, trajectory: Trajectory) -> RewardResult:
                return RewardResult(1.0, {"please": 1.0, "thanks": 1.0})

        registry = Registry("reward")
        for name, factory in rewards().items():
            registry.add(name, factory, owner="built-in")
        registry.add("polite", Politeness, owner="a test")
        monkeypatch.setattr(scoring, "rewards", lambda: registry)

        judging = scorer()
        polite, other = [
            judging.aligned(source, await score(source, say(RIGHT)))
            for source in ("polite", "reason")
        ]

        assert polite.keys() == other.keys()
        assert (polite["please"], other["please"]) == (1.0, 0.0)
        assert (polite["acc"], other["acc"]) == (0.0, 1.0)
        assert "thanks" not in polite
        assert "undeclared part 'thanks'" in caplog.text


class TestSettings:
    def test_a_partial_section_keeps_the_published_values(self) -> None:
        found = settings({"search": {"format": 0.5}, "vstar-test": {"format": 0.1}}).rewards
        assert (found.search.accuracy, found.search.format) == (0.8, 0.5)
        assert (found.search.search_penalty, found.search.longest_answer) == (0.1, 300)
        assert (found.vstar_test.accuracy, found.vstar_test.format) == (1.0, 0.1)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"accuracy": -1},
            {"accuracy": float("inf")},
            {"search_penalty": 2},
            {"bonus": 1},
            {"decide": "coin"},
            {"longest_answer": 0},
        ],
    )
    def test_impossible_values(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            RewardSettings.model_validate({"perception": wrong})

    def test_a_mistake_is_named_by_its_key(self, tmp_path: object) -> None:
        path = tmp_path / "agent.yaml"  # type: ignore[operator]
        path.write_text("rewards: {vstar: {weight: 1}}")
        with pytest.raises(SettingsError, match=r"rewards\.vstar\.weight: unknown key"):
            load_settings(path)

    def test_every_field_is_described(self) -> None:
        for model in (RewardSettings, *(type(value) for _, value in RewardSettings())):
            for name, field in getattr(model, "model_fields", {}).items():
                assert field.description, f"{model.__name__}.{name}"
