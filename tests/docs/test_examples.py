"""The examples of the documentation: the pages show these files, and these tests run them."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from deepeyes_plugins import plugins
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.observations import code_observation
from deepeyes_plugins.rewards.contracts import RewardResources
from deepeyes_plugins.rewards.settings import RewardSettings
from deepeyes_plugins.rollout import EndReason, Task, Trajectory, TurnRecord, rollout
from deepeyes_plugins.rollout.scripted import ScriptedPolicy
from deepeyes_plugins.search.contracts import SearchNotConfiguredError
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.testing.search import TEXT_CHECKS, Samples
from deepeyes_plugins.tools.hooks import tools
from deepeyes_plugins.tools.resources import Resources

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
DEEPEYES = Path(sys.executable).parent / "deepeyes"
PICTURE = EncodedImage.from_pil(Image.new("L", (20, 10), 200))


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    environment = {**os.environ, **variables}
    answer = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return import_module(request.param)


def test_the_data_that_the_scripts_make_has_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("sft", "rl"):
        runpy.run_path(str(EXAMPLES / f"{kind}_data.py"))

    row = json.loads((tmp_path / "data/my_sft/my_sft.jsonl").read_text())
    text, _ = code_observation("", "", [PICTURE])
    assert row["messages"][3]["content"] == f"{text}<image>", "as the sandbox returns it"
    command = (DEEPEYES, "data", "check", "data/my_sft", "data/my_rl", "--json")
    reports = json.loads(run(*command, cwd=tmp_path))

    found = {(report["kind"], report["rows"], len(report["problems"])) for report in reports}
    assert found == {("sft", 1, 0), ("rl", 1, 0)}


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What ``deepeyes plugins`` lists where the package of the examples is installed."""
    folder = tmp_path_factory.mktemp("site")
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*install, "--no-build-isolation", "--target", folder, EXAMPLES, cwd=folder)
    return json.loads(run(DEEPEYES, "plugins", "--json", cwd=folder, PYTHONPATH=str(folder)))


@pytest.mark.parametrize(
    ("module", "kind", "name"),
    [
        ("brightness_tool", "tool", "brightness"),
        ("counting_environment", "environment", "counting"),
        ("distance_reward", "reward", "my-counting"),
        ("glossary_search", "search provider", "glossary"),
        ("caption_formatter", "formatter", "caption"),
    ],
)
def test_what_an_example_registers_is_listed(
    listed: list[dict[str, Any]], module: str, kind: str, name: str
) -> None:
    assert {"kind": kind, "name": name, "owner": module} in listed


def test_every_example_is_shown_on_a_page() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    examples = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert {name for name in examples if f'--8<-- "{name}' not in pages} == set()


@pytest.fixture
def registered(example: ModuleType) -> Iterator[ModuleType]:
    """The example as an installed plugin of this process."""
    registries = (tools, environments)
    plugins.manager().register(example)
    for registry in registries:
        registry.cache_clear()
    yield example
    plugins.manager().unregister(example)
    for registry in registries:
        registry.cache_clear()


def task(ground_truth: str = "") -> Task:
    return Task("1", (Message("user", (PICTURE, "?")),), ground_truth=ground_truth)


# --8<-- [start:tool]
@pytest.mark.parametrize("example", ["brightness_tool"], indirect=True)
async def test_the_tool_answers_and_explains_mistakes(registered: ModuleType) -> None:
    call = '<tool_call>{"name": "brightness", "arguments": {"box": %s}}</tool_call>'
    policy = ScriptedPolicy([call % "[0, 0, 5, 5]", call % '"all"', "<answer>bright</answer>"])
    settings = AgentSettings(tools={"visual_toolbox_v2": ["brightness"]})
    environment = environments()["visual_toolbox_v2"](Resources(settings))

    trajectory = await rollout(policy, environment, task())

    first, second, _ = trajectory.turns
    assert first.observation[0].text == "<tool_response>\n200 of 255\n</tool_response>"
    assert second.error == "'box' must be [x1, y1, x2, y2] within the image"
    assert trajectory.answer == "bright"
    # --8<-- [end:tool]


# --8<-- [start:environment]
@pytest.mark.parametrize("example", ["counting_environment"], indirect=True)
async def test_the_environment_gives_hints(registered: ModuleType) -> None:
    guess = '<tool_call>{"name": "guess", "arguments": {"count": %s}}</tool_call>'
    policy = ScriptedPolicy([guess % 3, guess % '"many"', guess % 9, "<answer>7</answer>"])
    environment = environments()["counting"](Resources(AgentSettings()))

    trajectory = await rollout(policy, environment, task(ground_truth="7"))

    hints = [turn.observation[0].text.splitlines()[1] for turn in trajectory.turns[:3]]
    assert hints == ["low", "Error: count is a number", "high"]
    assert trajectory.end_reason is EndReason.ANSWER
    # --8<-- [end:environment]


# --8<-- [start:reward]
@pytest.mark.parametrize("example", ["distance_reward"], indirect=True)
@pytest.mark.parametrize(("answer", "near"), [("7", 1.0), ("8", 0.5), ("many", 0.0), (None, 0.0)])
async def test_the_reward_is_higher_the_nearer(
    example: ModuleType, answer: str | None, near: float
) -> None:
    turn = TurnRecord(text="", action="tool_call", tool="guess")
    trajectory = Trajectory(task_id="1", turns=[turn], answer=answer, end_reason=EndReason.ANSWER)

    result = await example.Distance(RewardResources(RewardSettings())).score(task("7"), trajectory)

    assert result.parts == {"near": near, "calls": 1.0}
    assert result.score == near - 0.05
    assert set(result.parts) == set(example.Distance.parts)
    # --8<-- [end:reward]


# --8<-- [start:search]
@pytest.mark.parametrize("example", ["glossary_search"], indirect=True)
@pytest.mark.parametrize("check", TEXT_CHECKS.values(), ids=list(TEXT_CHECKS))
async def test_the_provider_keeps_the_contract(
    example: ModuleType, check: Any, tmp_path: Path
) -> None:
    path = tmp_path / "terms.txt"
    path.write_text("GRPO: Group relative policy optimization.\nrollout: Playing one episode.\n")
    provider = example.GlossarySearch({"path": path})

    await check(provider, Samples(known="GRPO rollout", unknown="qzxj"))
    # --8<-- [end:search]


@pytest.mark.parametrize("example", ["glossary_search"], indirect=True)
def test_the_provider_names_the_file_that_is_missing(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SearchNotConfiguredError, match=r"glossary\.path: no file"):
        example.GlossarySearch({"path": tmp_path / "none"}).preflight()


# --8<-- [start:formatter]
@pytest.mark.parametrize("example", ["caption_formatter"], indirect=True)
def test_the_formatter_makes_a_conversation(example: ModuleType) -> None:
    row = {"question": "What is it?", "picture": "1.png", "caption": "a boat"}

    conversation = example.caption(row)

    assert conversation.turns[0] == ("user", "<image>What is it?")
    assert conversation.turns[1][1].endswith("<answer>a boat</answer>")
    assert conversation.images == ("1.png",)
    with pytest.raises(RowError, match="the row has no caption"):
        example.caption({"question": "?", "picture": "1.png"})
    # --8<-- [end:formatter]
