"""One episode, from the prompt to the reason why it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from deepeyes_plugins.protocol.actions import Action, CodeAction, MalformedAction
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.dialect import PLAIN
from deepeyes_plugins.rollout import (
    AssistantTurn,
    EndReason,
    Environment,
    InfrastructureError,
    Limits,
    Observation,
    Policy,
    Step,
    Task,
    Trajectory,
    rollout,
)
from deepeyes_plugins.rollout import loop as rollout_loop
from deepeyes_plugins.rollout.scripted import ScriptedPolicy

TASK = Task("task-1", (Message("user", ("Which colour?",)),), data_source="perception")
CODE = "<think>Look.</think>\n<code>\n```python\n1\n```\n</code>"
CALL = '<think>Ask.</think>\n<tool_call>\n{"name": "search"}\n</tool_call>'
BROKEN = "<think>Look.</think>\n<code>1</code>"
ANSWER = "<think>Seen.</think><answer>red</answer>"
PICTURE = EncodedImage.from_pil(Image.new("RGB", (40, 40), "red"))


class ScriptedEnvironment(Environment):
    """Replies what it is told to, and keeps what happened to it."""

    def __init__(
        self, reply: Callable[[Action], Step] | None = None, limits: Limits | None = None
    ) -> None:
        self.dialect = PLAIN
        self.limits = limits or Limits()
        self.actions: list[Action] = []
        self.opened = False
        self.closed = 0
        self._reply = reply or (lambda action: Step(Observation(("seen",)), tool="python"))

    async def open(self, task: Task) -> None:
        self.opened = True

    async def step(self, action: Action) -> Step:
        self.actions.append(action)
        return self._reply(action)

    async def close(self) -> None:
        self.closed += 1


async def hang() -> None:
    await asyncio.Event().wait()


async def test_the_record_holds_what_scoring_needs() -> None:
    task = Task("1", (Message("user", ("<image>Which colour?",)),), ground_truth="red")
    trajectory = await rollout(ScriptedPolicy([ANSWER]), ScriptedEnvironment(), task)
    assert (trajectory.question, trajectory.ground_truth) == ("Which colour?", "red")


class TestEndReasons:
    async def play(
        self,
        *lines: str | AssistantTurn,
        environment: ScriptedEnvironment | None = None,
        observations: int | None = None,
    ) -> Trajectory:
        environment = environment or ScriptedEnvironment()
        policy = ScriptedPolicy(lines, observations=observations)
        trajectory = await rollout(policy, environment, TASK, name="scripted")
        assert environment.closed == 1
        return trajectory

    async def test_answer(self) -> None:
        trajectory = await self.play(CODE, ANSWER)
        assert trajectory.end_reason is EndReason.ANSWER
        assert trajectory.answer == "red"
        assert [turn.action for turn in trajectory.turns] == ["code", "answer"]
        assert trajectory.assistant_turns == [CODE, ANSWER]

    async def test_no_action(self) -> None:
        trajectory = await self.play("<think>Hm.</think>It is red.")
        assert trajectory.end_reason is EndReason.NO_ACTION
        assert trajectory.answer is None

    async def test_no_action_when_the_environment_has_nothing_to_say(self) -> None:
        environment = ScriptedEnvironment(lambda action: Step(None))
        assert (await self.play(CODE, environment=environment)).end_reason is EndReason.NO_ACTION

    async def test_a_malformed_action_does_not_end_the_episode(self) -> None:
        environment = ScriptedEnvironment()
        trajectory = await self.play(BROKEN, ANSWER, environment=environment)
        assert trajectory.end_reason is EndReason.ANSWER
        assert trajectory.turns[0].action == "malformed"
        assert isinstance(environment.actions[0], MalformedAction)

    async def test_turns(self) -> None:
        """On the last turn a tool is not called: nobody could read its result."""
        environment = ScriptedEnvironment(limits=Limits(turns=3))
        trajectory = await self.play(CODE, CODE, CODE, ANSWER, environment=environment)
        assert trajectory.end_reason is EndReason.TURNS
        assert len(trajectory.turns) == 3
        assert len(environment.actions) == 2
        assert trajectory.turns[2].observation is None
        assert trajectory.tool_calls == {"python": 2}

    async def test_an_answer_on_the_last_turn_counts(self) -> None:
        environment = ScriptedEnvironment(limits=Limits(turns=2))
        assert (await self.play(CODE, ANSWER, environment=environment)).answer == "red"

    async def test_tokens_when_the_budget_is_used_up(self) -> None:
        trajectory = await self.play(CODE)
        assert trajectory.end_reason is EndReason.TOKENS
        assert len(trajectory.turns) == 1

    async def test_tokens_when_an_observation_does_not_fit(self) -> None:
        trajectory = await self.play(CODE, CODE, ANSWER, observations=1)
        assert trajectory.end_reason is EndReason.TOKENS
        assert len(trajectory.turns) == 2

    @pytest.mark.parametrize("text", ["<think>And so on", CODE, CODE[:-7], CALL])
    async def test_tokens_when_a_turn_is_cut(self, text: str) -> None:
        environment = ScriptedEnvironment()
        turn = AssistantTurn(text, finish_reason="length", tokens=8192)
        trajectory = await self.play(turn, ANSWER, environment=environment)
        assert trajectory.end_reason is EndReason.TOKENS
        assert environment.actions == []
        assert trajectory.turns[0].tokens == 8192

    async def test_an_answer_that_is_complete_counts_though_the_turn_was_cut(self) -> None:
        trajectory = await self.play(AssistantTurn(ANSWER + " and", finish_reason="length"))
        assert (trajectory.end_reason, trajectory.answer) == (EndReason.ANSWER, "red")

    async def test_images(self) -> None:
        """As many as the limit are fine; the next one ends the episode."""
        environment = ScriptedEnvironment(
            lambda action: Step(Observation((PICTURE,)), tool="python"), Limits(images=2)
        )
        trajectory = await self.play(CODE, CODE, CODE, ANSWER, environment=environment)
        assert trajectory.end_reason is EndReason.IMAGES
        assert trajectory.images_returned == 3
        assert len(trajectory.turns) == 3


class TestWallTime:
    LIMITS = Limits(wall_time=0.05)

    @pytest.mark.parametrize("method", ["begin", "act", "observe"])
    async def test_a_hanging_policy_is_cancelled(self, method: str) -> None:
        policy, environment = ScriptedPolicy([CODE, ANSWER]), ScriptedEnvironment()
        environment.limits = self.LIMITS
        setattr(policy, method, lambda *_: hang())
        trajectory = await rollout(policy, environment, TASK)
        assert trajectory.end_reason is EndReason.WALL_TIME
        assert trajectory.error is None
        assert environment.closed == 1
        assert trajectory.seconds >= 0.05

    @pytest.mark.parametrize("method", ["open", "step"])
    async def test_a_hanging_environment_is_cancelled(self, method: str) -> None:
        policy, environment = ScriptedPolicy([CODE, ANSWER]), ScriptedEnvironment()
        environment.limits = self.LIMITS
        setattr(environment, method, lambda _: hang())
        trajectory = await rollout(policy, environment, TASK)
        assert trajectory.end_reason is EndReason.WALL_TIME
        assert trajectory.assistant_turns == [CODE]
        assert environment.closed == 1

    async def test_an_environment_that_hangs_while_closing_is_left(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rollout_loop, "CLOSE_TIMEOUT", 0.05)
        environment = ScriptedEnvironment()
        monkeypatch.setattr(environment, "close", hang)
        trajectory = await rollout(ScriptedPolicy([ANSWER]), environment, TASK)
        assert trajectory.end_reason is EndReason.ANSWER

    async def test_a_time_out_of_the_policy_is_not_the_wall_time(self) -> None:
        def time_out(_: object) -> str:
            raise TimeoutError("no reply")

        trajectory = await rollout(ScriptedPolicy([time_out]), ScriptedEnvironment(), TASK)
        assert trajectory.end_reason is EndReason.INFRASTRUCTURE


class TestFailures:
    """Whatever fails is in the record; nothing is raised."""

    @pytest.mark.parametrize("method", ["begin", "act", "observe"])
    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (InfrastructureError("engine down"), "engine down"),
            (ValueError("a bug"), "ValueError('a bug')"),
        ],
    )
    async def test_of_the_policy(self, method: str, error: Exception, reason: str) -> None:
        async def fail(*_: object) -> None:
            raise error

        policy, environment = ScriptedPolicy([CODE, ANSWER]), ScriptedEnvironment()
        setattr(policy, method, fail)
        trajectory = await rollout(policy, environment, TASK)
        assert trajectory.end_reason is EndReason.INFRASTRUCTURE
        assert trajectory.error == reason
        assert trajectory.infrastructure_errors == 1
        assert environment.closed == 1

    @pytest.mark.parametrize("method", ["open", "step", "parse"])
    async def test_of_the_environment(self, method: str) -> None:
        def fail(_: object) -> None:
            raise InfrastructureError("sandbox down")

        async def fail_later(_: object) -> None:
            fail(None)

        environment = ScriptedEnvironment()
        setattr(environment, method, fail if method == "parse" else fail_later)
        trajectory = await rollout(ScriptedPolicy([CODE, ANSWER]), environment, TASK)
        assert trajectory.end_reason is EndReason.INFRASTRUCTURE
        assert trajectory.error == "sandbox down"
        assert environment.closed == 1

    async def test_of_a_sandbox_that_was_not_needed(self) -> None:
        async def fail(task: Task) -> None:
            raise InfrastructureError("sandbox down")

        environment = ScriptedEnvironment()
        environment.open = fail  # type: ignore[method-assign]
        trajectory = await rollout(ScriptedPolicy([ANSWER]), environment, TASK)
        assert trajectory.end_reason is EndReason.ANSWER

    async def test_while_closing(self) -> None:
        async def fail() -> None:
            raise RuntimeError("a bug")

        environment = ScriptedEnvironment()
        environment.close = fail  # type: ignore[method-assign]
        trajectory = await rollout(ScriptedPolicy([ANSWER]), environment, TASK)
        assert trajectory.end_reason is EndReason.ANSWER

    async def test_of_a_tool_that_the_model_may_mend(self) -> None:
        def reply(action: Action) -> Step:
            return Step(Observation(("down",), error="no", infrastructure=True), tool="search")

        trajectory = await rollout(ScriptedPolicy([CALL, ANSWER]), ScriptedEnvironment(reply), TASK)
        assert trajectory.end_reason is EndReason.ANSWER
        assert trajectory.turns[0].error == "no"
        assert trajectory.infrastructure_errors == 1

    @pytest.mark.parametrize("tolerated", [0, 2])
    async def test_more_failing_tools_than_are_tolerated_end_the_episode(
        self, tolerated: int
    ) -> None:
        def reply(action: Action) -> Step:
            return Step(Observation(("no",), error="down", infrastructure=True), tool="search")

        environment = ScriptedEnvironment(reply, Limits(infrastructure_errors=tolerated))
        trajectory = await rollout(ScriptedPolicy([CALL] * 8), environment, TASK)
        assert trajectory.end_reason is EndReason.INFRASTRUCTURE
        assert len(trajectory.turns) == tolerated + 1
        assert trajectory.error == (
            f"{tolerated + 1} tool calls failed with an infrastructure error, the last one of "
            "search: down"
        )

    async def test_mistakes_of_the_model_are_always_tolerated(self) -> None:
        environment = ScriptedEnvironment(
            lambda action: Step(Observation(("no",), error="NameError"), tool="python"),
            Limits(infrastructure_errors=0),
        )
        trajectory = await rollout(ScriptedPolicy([CODE, CODE, ANSWER]), environment, TASK)
        assert trajectory.end_reason is EndReason.ANSWER


class TestWallTimeAndGeneration:
    class Paused(ScriptedPolicy):
        """Its engine stands still for a while, as when the trainer has the machine."""

        async def act(self) -> AssistantTurn | None:
            await asyncio.sleep(0.1)
            return await super().act()

    async def test_generation_is_included_by_default(self) -> None:
        environment = ScriptedEnvironment(limits=Limits(wall_time=0.05))
        trajectory = await rollout(self.Paused([CODE, ANSWER]), environment, TASK)
        assert trajectory.end_reason is EndReason.WALL_TIME

    async def test_not_where_the_engine_is_stopped_for_training(self) -> None:
        environment = ScriptedEnvironment(limits=Limits(wall_time=0.05))
        policy = self.Paused([CODE, ANSWER])
        trajectory = await rollout(policy, environment, TASK, wall_time_includes_generation=False)
        assert trajectory.end_reason is EndReason.ANSWER

    async def test_the_old_name_of_the_argument_warns(self) -> None:
        environment = ScriptedEnvironment(limits=Limits(wall_time=0.05))
        old: dict[str, Any] = {"generation_counts": False}
        with pytest.warns(FutureWarning, match=r"use rollout\.wall_time_includes_generation"):
            episode = rollout(self.Paused([CODE, ANSWER]), environment, TASK, **old)
        assert (await episode).end_reason is EndReason.ANSWER

        with pytest.raises(ValueError, match="both are given"):
            await rollout(
                ScriptedPolicy([]), environment, TASK, wall_time_includes_generation=True, **old
            )

    async def test_an_engine_that_hangs_is_an_infrastructure_error(self) -> None:
        class Hanging(ScriptedPolicy):
            async def act(self) -> AssistantTurn | None:
                await hang()
                raise AssertionError

        environment = ScriptedEnvironment(limits=Limits(turn_timeout=0.05))
        trajectory = await rollout(
            Hanging([]), environment, TASK, wall_time_includes_generation=False
        )
        assert trajectory.end_reason is EndReason.INFRASTRUCTURE
        assert trajectory.error == (
            "the engine generated no turn within 0.05 s (limits.turn_timeout)"
        )

    async def test_tools_count_in_any_case(self) -> None:
        class Slow(ScriptedEnvironment):
            async def step(self, action: Action) -> Step:
                await hang()
                raise AssertionError

        environment = Slow(limits=Limits(wall_time=0.05))
        policy = ScriptedPolicy([CODE, ANSWER])
        trajectory = await rollout(policy, environment, TASK, wall_time_includes_generation=False)
        assert trajectory.end_reason is EndReason.WALL_TIME


class TestCancellation:
    async def test_from_outside_propagates_and_closes(self) -> None:
        stepping = asyncio.Event()

        async def step(action: Action) -> Step:
            stepping.set()
            await hang()
            raise AssertionError

        environment = ScriptedEnvironment()
        environment.step = step  # type: ignore[method-assign]
        episode = asyncio.ensure_future(rollout(ScriptedPolicy([CODE]), environment, TASK))
        await stepping.wait()
        episode.cancel()
        with pytest.raises(asyncio.CancelledError):
            await episode
        assert environment.closed == 1

    async def test_that_comes_twice_still_closes(self) -> None:
        closing, closed = asyncio.Event(), asyncio.Event()

        class SlowToClose(ScriptedEnvironment):
            async def close(self) -> None:
                closing.set()
                await asyncio.sleep(0.01)
                closed.set()

        episode = asyncio.ensure_future(
            rollout(ScriptedPolicy([lambda _: ANSWER]), SlowToClose(), TASK)
        )
        await closing.wait()
        episode.cancel()
        with pytest.raises(asyncio.CancelledError):
            await episode
        await asyncio.wait_for(closed.wait(), 5)

    async def test_of_an_opening_that_nobody_needs_any_more(self) -> None:
        """An answer on the first turn does not wait for the sandbox; the opening still ends."""
        events: list[str] = []

        class SlowEnvironment(ScriptedEnvironment):
            async def open(self, task: Task) -> None:
                try:
                    await hang()
                finally:
                    events.append("opening ended")

            async def close(self) -> None:
                events.append("closed")

        class PolicyOfSeveralSteps(ScriptedPolicy):
            async def act(self) -> AssistantTurn | None:
                await asyncio.sleep(0)
                return await super().act()

        trajectory = await rollout(PolicyOfSeveralSteps([ANSWER]), SlowEnvironment(), TASK)
        assert trajectory.end_reason is EndReason.ANSWER
        assert events == ["opening ended", "closed"]


async def test_the_environment_opens_while_the_policy_generates() -> None:
    events: list[str] = []
    generating = asyncio.Event()

    class Generating(ScriptedPolicy):
        async def act(self) -> AssistantTurn | None:
            events.append("generate")
            generating.set()
            return await super().act()

    class Opening(ScriptedEnvironment):
        async def open(self, task: Task) -> None:
            events.append("open")
            await generating.wait()
            events.append("ready")

        async def step(self, action: Action) -> Step:
            events.append("step")
            return await super().step(action)

    class BeginsSlowly(Generating):
        async def begin(self, task: Task) -> None:
            await asyncio.sleep(0)
            await super().begin(task)

    await rollout(BeginsSlowly([CODE, ANSWER]), Opening(), TASK)
    assert events == ["open", "generate", "ready", "step", "generate"]


class TestTheRecord:
    async def test_holds_everything_that_happened(self) -> None:
        environment = ScriptedEnvironment(
            lambda action: Step(Observation(("Images:\n", PICTURE)), tool="python")
        )
        policy = ScriptedPolicy([AssistantTurn(CODE, tokens=7), ANSWER])
        trajectory = await rollout(policy, environment, TASK, name="scripted")
        assert environment.actions == [CodeAction("1")]
        assert trajectory.task_id == "task-1"
        assert trajectory.data_source == "perception"
        assert trajectory.environment == "scripted"
        first = trajectory.turns[0]
        assert (first.tokens, first.tool, first.action) == (7, "python", "code")
        assert first.observation is not None
        assert [part.text for part in first.observation] == ["Images:\n", None]
        assert [part.image for part in first.observation] == [None, PICTURE.sha256]
        assert 0 <= first.tool_seconds <= trajectory.seconds

    async def test_is_one_line_of_json(self) -> None:
        environment = ScriptedEnvironment(
            lambda action: Step(Observation(("a\nb", PICTURE), error="x"), tool="python")
        )
        trajectory = await rollout(ScriptedPolicy([CODE, BROKEN, ANSWER]), environment, TASK)
        line = trajectory.model_dump_json()
        assert "\n" not in line
        assert Trajectory.model_validate_json(line) == trajectory

    async def test_text_that_utf8_cannot_hold_is_replaced_when_written(self) -> None:
        def reply(action: Action) -> Step:
            return Step(Observation(("\ud800",), error="\ud801"), tool="\ud802")

        lines = [CODE, "<answer>\ud803</answer>"]
        trajectory = await rollout(ScriptedPolicy(lines), ScriptedEnvironment(reply), TASK)
        read = Trajectory.model_validate_json(trajectory.model_dump_json())
        assert read.answer == read.turns[0].error == read.turns[0].tool == "\ufffd"


class TestScriptedPolicy:
    def test_is_a_policy(self) -> None:
        assert isinstance(ScriptedPolicy([]), Policy)

    async def test_keeps_the_conversation(self) -> None:
        policy = ScriptedPolicy([CODE, ANSWER])
        await rollout(policy, ScriptedEnvironment(), TASK)
        assert [message.role for message in policy.messages] == [
            "user",
            "assistant",
            "user",
            "assistant",
        ]
        assert policy.messages[2].text == "seen"

    async def test_a_line_may_depend_on_what_came_back(self) -> None:
        def repeat(messages: tuple[Message, ...]) -> str:
            return f"<answer>{messages[-1].text}</answer>"

        trajectory = await rollout(ScriptedPolicy([CODE, repeat]), ScriptedEnvironment(), TASK)
        assert trajectory.answer == "seen"
