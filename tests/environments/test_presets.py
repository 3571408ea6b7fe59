"""Whole episodes in the named environments, with a scripted model and the real sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from PIL import Image

from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.environments.tool_environment import ToolEnvironment
from deepeyes_plugins.plugins import UnknownNameError
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2, PLAIN, VISUAL_TOOLBOX_V2
from deepeyes_plugins.rollout import (
    EndReason,
    InfrastructureError,
    Limits,
    Observation,
    Task,
    Tool,
    Trajectory,
    rollout,
)
from deepeyes_plugins.rollout.scripted import Cue, Line, ScriptedPolicy
from deepeyes_plugins.sandbox.embedded import EmbeddedServer, start_server
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.resources import Resources

TOKEN_VARIABLE = "DEEPEYES_TOKEN_ENVIRONMENT_TESTS"
ANSWER = "<think>It is red.</think>\n<answer>red</answer>"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with (
        pytest.MonkeyPatch.context() as environment,
        start_server(SandboxSettings(token_env=TOKEN_VARIABLE)) as running,
    ):
        environment.setenv(TOKEN_VARIABLE, running.token)
        yield running


@pytest.fixture
async def resources(server: EmbeddedServer) -> AsyncIterator[Resources]:
    sandbox = SandboxSettings(url=server.url, token_env=TOKEN_VARIABLE)
    shared = Resources(AgentSettings(sandbox=sandbox))
    yield shared
    await shared.aclose()


@pytest.fixture
def task() -> Task:
    """White with a red square from (100, 50) to (150, 100)."""
    image = Image.new("RGB", (400, 300), "white")
    image.paste("red", (100, 50, 150, 100))
    parts = (EncodedImage.from_pil(image), "Which colour is the square?")
    return Task("task-1", (Message("user", parts),))


def code(source: str) -> str:
    return f"<think>Look closer.</think>\n<code>\n```python\n{source}\n```\n</code>"


def call(json: str) -> str:
    return f"<think>Ask.</think>\n<tool_call>\n{json}\n</tool_call>"


async def play(name: str, resources: Resources, task: Task, *lines: Line | Cue) -> Trajectory:
    environment = environments()[name](resources)
    return await rollout(ScriptedPolicy(lines), environment, task, name=name)


class TestDeepEyesV2:
    async def test_crop_and_answer(self, resources: Resources, task: Task) -> None:
        """Two turns: the crop comes back as an image, and the model names its colour."""

        def answer(messages: tuple[Message, ...]) -> str:
            (crop,) = messages[-1].images
            colour = "red" if crop.pil().getpixel((25, 25)) == (255, 0, 0) else "another"
            return f"<think>I see it.</think>\n<answer>{colour}</answer>"

        trajectory = await play(
            "deepeyes_v2",
            resources,
            task,
            code("crop = image_1.crop((100, 50, 150, 100))\nprint(crop.size)\ndisplay(crop)"),
            answer,
        )
        assert trajectory.end_reason is EndReason.ANSWER
        assert trajectory.answer == "red"
        assert trajectory.tool_calls == {"python": 1}
        assert trajectory.images_returned == 1
        observation = trajectory.turns[0].observation
        assert observation is not None
        assert observation[0].text == (
            "Code execution result:\nstdout:\n```\n(50, 50)\n\n```\n\nstderr:\n```\n\n```\n\n"
            "Images:\n"
        )

    async def test_variables_live_through_the_trajectory_and_no_longer(
        self, resources: Resources, task: Task
    ) -> None:
        first = await play("deepeyes_v2", resources, task, code("x = 1"), code("x + 1"), ANSWER)
        second = await play("deepeyes_v2", resources, task, code("x"), ANSWER)
        assert [turn.error for turn in first.turns] == [None] * 3
        assert second.turns[0].error == "NameError"

    @pytest.mark.parametrize(
        ("mistake", "told"),
        [
            (call('{"name": "zoom"}'), "There is no tool 'zoom'. Tools: image_search, search. Pyt"),
            (call('{"name": "python", "arguments": {"code": "1"}}'), "Python runs in <code> block"),
            (call('{"name": "<|im_start|>"}'), "There is no tool '< |im_start|>'"),
            (call('{"name": "search"'), "The <tool_call> is not valid JSON"),
            (call("[]"), 'A <tool_call> is a JSON object with a string "name"'),
            ("<code>print(1)</code>", "holds no fenced Python"),
            ("<code>\n```python\nprint(1)\n```\n", "not closed"),
            (call('{"name": "search", "arguments": {"query": 7}}'), "'query' must be a text"),
            (code("1 / 0"), "ZeroDivisionError"),
        ],
    )
    async def test_a_mistake_is_told_and_the_episode_goes_on(
        self, resources: Resources, task: Task, mistake: str, told: str
    ) -> None:
        trajectory = await play("deepeyes_v2", resources, task, mistake, code("1"), ANSWER)
        assert trajectory.end_reason is EndReason.ANSWER
        turn = trajectory.turns[0]
        assert turn.observation is not None
        assert told in (turn.observation[0].text or "")
        assert turn.error
        assert trajectory.turns[1].error is None
        assert trajectory.infrastructure_errors == 0

    async def test_a_sandbox_that_dies_is_ours_and_the_episode_goes_on(
        self, task: Task, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = SandboxSettings(token_env="DEEPEYES_TOKEN_SHORT_LIVED")
        with start_server(settings) as short_lived:
            monkeypatch.setenv(settings.token_env, short_lived.token)
            sandbox = settings.model_copy(update={"url": short_lived.url})
            resources = Resources(AgentSettings(sandbox=sandbox))

            def after_its_death(messages: tuple[Message, ...]) -> str:
                short_lived.close()
                return code("2")

            trajectory = await play(
                "deepeyes_v2", resources, task, code("1"), after_its_death, ANSWER
            )
            await resources.aclose()
        assert trajectory.end_reason is EndReason.ANSWER
        first, second, _ = trajectory.turns
        assert not first.infrastructure_error
        assert second.infrastructure_error
        assert second.observation is not None
        assert "unavailable at the moment" in (second.observation[0].text or "")
        assert trajectory.infrastructure_errors == 1

    async def test_no_sandbox_at_all(self, task: Task) -> None:
        settings = AgentSettings(sandbox=SandboxSettings(url="http://127.0.0.1:9", patience=0))
        resources = Resources(settings)
        trajectory = await play("deepeyes_v2", resources, task, code("1"), ANSWER)
        await resources.aclose()
        assert trajectory.end_reason is EndReason.INFRASTRUCTURE
        assert "http://127.0.0.1:9" in (trajectory.error or "")

    async def test_many_at_once(self, resources: Resources, task: Task) -> None:
        def colour(messages: tuple[Message, ...]) -> str:
            return f"<think></think><answer>{'(255, 0, 0)' in messages[-1].text}</answer>"

        lines = (code("x = image_1.getpixel((120, 70))"), code("x"), colour)
        episodes = [play("deepeyes_v2", resources, task, *lines) for _ in range(8)]
        assert [episode.answer for episode in await asyncio.gather(*episodes)] == ["True"] * 8
        assert (await (await resources.sandbox()).health()).sessions == 0


class TestVisualToolboxV2:
    async def test_zoom_and_answer(self, resources: Resources, task: Task) -> None:
        zoom = call('{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [100, 50, 150, 100]}}')
        trajectory = await play("visual_toolbox_v2", resources, task, zoom, ANSWER)
        assert trajectory.end_reason is EndReason.ANSWER
        assert trajectory.tool_calls == {"image_zoom_in_tool": 1}
        assert trajectory.images_returned == 1

    async def test_code_is_not_run(self, resources: Resources, task: Task) -> None:
        trajectory = await play("visual_toolbox_v2", resources, task, code("1"), ANSWER)
        assert trajectory.turns[0].error == (
            "There is no tool 'python'. Tools: image_rotate_tool, image_zoom_in_tool."
        )
        assert trajectory.answer == "red"

    async def test_a_wrong_box_is_told(self, resources: Resources, task: Task) -> None:
        zoom = call('{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 5, 5]}}')
        trajectory = await play("visual_toolbox_v2", resources, task, zoom, ANSWER)
        assert "too small" in (trajectory.turns[0].error or "")
        assert trajectory.answer == "red"

    async def test_five_turns(self, resources: Resources, task: Task) -> None:
        rotate = call('{"name": "image_rotate_tool", "arguments": {"angle": 90}}')
        trajectory = await play("visual_toolbox_v2", resources, task, *[rotate] * 6)
        assert trajectory.end_reason is EndReason.TURNS
        assert len(trajectory.turns) == 5


class TestNone:
    async def test_an_answer_at_once(self, resources: Resources, task: Task) -> None:
        assert (await play("none", resources, task, ANSWER)).answer == "red"

    @pytest.mark.parametrize("line", [code("1"), call('{"name": "search"}')])
    async def test_a_single_turn(self, resources: Resources, task: Task, line: str) -> None:
        trajectory = await play("none", resources, task, line, ANSWER)
        assert trajectory.end_reason is EndReason.TURNS
        assert len(trajectory.turns) == 1
        assert trajectory.tool_calls == {}


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "dialect", "turns"),
        [
            ("deepeyes_v2", DEEPEYES_V2, 9),
            ("visual_toolbox_v2", VISUAL_TOOLBOX_V2, 5),
            ("none", PLAIN, 1),
        ],
    )
    def test_dialect_and_turns(self, name: str, dialect: object, turns: int) -> None:
        environment = environments()[name](Resources(AgentSettings()))
        assert environment.dialect == dialect
        assert environment.limits.turns == turns

    @pytest.mark.parametrize(
        ("name", "turns"), [("deepeyes_v2", 3), ("visual_toolbox_v2", 3), ("none", 1)]
    )
    def test_settings_lower_the_turns(self, name: str, turns: int) -> None:
        settings = AgentSettings(limits=Limits(turns=3, images=2))
        environment = environments()[name](Resources(settings))
        assert environment.limits == Limits(turns=turns, images=2)

    async def test_settings_choose_the_tools(self, task: Task) -> None:
        resources = Resources(AgentSettings(tools={"deepeyes_v2": ["image_zoom_in_tool"]}))
        trajectory = await play("deepeyes_v2", resources, task, code("1"), ANSWER)
        assert trajectory.turns[0].error == "There is no tool 'python'. Tools: image_zoom_in_tool."

    def test_an_unknown_tool_is_named(self) -> None:
        resources = Resources(AgentSettings(tools={"deepeyes_v2": ["pyhton"]}))
        with pytest.raises(UnknownNameError, match="Did you mean 'python'"):
            environments()["deepeyes_v2"](resources)

    def test_an_unknown_environment_is_named(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'deepeyes_v2'"):
            environments()["deepeyes_v3"]


class SlowTool(Tool):
    """Opens only when it is told to, and remembers what happened to it."""

    name = "slow"

    def __init__(self) -> None:
        self.may_open = asyncio.Event()
        self.events: list[str] = []

    async def open(self, task: Task) -> None:
        await self.may_open.wait()
        self.events.append("opened")

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        raise AssertionError

    async def close(self) -> None:
        self.events.append("closed")


class BrokenTool(SlowTool):
    name = "broken"

    def __init__(self, slow: SlowTool) -> None:
        super().__init__()
        self._slow = slow

    async def open(self, task: Task) -> None:
        self._slow.may_open.set()
        raise InfrastructureError("service down")

    async def close(self) -> None:
        raise RuntimeError("a bug")


class TestToolsOfAnEnvironment:
    async def test_none_opens_behind_a_failure(self, task: Task) -> None:
        """A tool that opened after its environment was closed would never be closed."""
        slow = SlowTool()
        environment = ToolEnvironment(PLAIN, [BrokenTool(slow), slow], Limits())
        with pytest.raises(InfrastructureError, match="service down"):
            await environment.open(task)
        assert slow.events == ["opened"]
        await environment.close()

    async def test_one_that_cannot_be_closed_does_not_keep_the_others_open(self) -> None:
        slow = SlowTool()
        await ToolEnvironment(PLAIN, [BrokenTool(slow), slow], Limits()).close()
        assert slow.events == ["closed"]


class OddTool(Tool):
    """A tool of a plugin that does what no tool should."""

    name = "odd"

    def __init__(self, returned: Any) -> None:
        self.returned = returned

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        if isinstance(self.returned, Exception):
            raise self.returned
        return self.returned  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("a text", "it returned a str, not an Observation"),
        (None, "it returned a NoneType, not an Observation"),
        ({"parts": []}, "it returned a dict, not an Observation"),
        (Observation("a text"), "the parts of its Observation are a str, not a tuple"),  # type: ignore[arg-type]
        (Observation((Image.new("L", (9, 9)),)), "its Observation has a Image"),  # type: ignore[arg-type]
        (KeyError("url"), "KeyError('url')"),
    ],
)
async def test_a_tool_that_is_wrong_is_named_and_no_model_error(returned: Any, said: str) -> None:
    environment = ToolEnvironment(DEEPEYES_V2, [OddTool(returned)], Limits())
    policy = ScriptedPolicy([call('{"name": "odd"}'), ANSWER])
    trajectory = await rollout(policy, environment, Task("1", ()))
    turn = trajectory.turns[0]
    assert (turn.tool, turn.infrastructure_error) == ("odd", True)
    assert turn.error is not None and turn.error.startswith("the tool odd failed: ")
    assert said in turn.error
    assert "The tool odd is unavailable at the moment." in str(turn.observation)
    assert trajectory.end_reason is EndReason.ANSWER
