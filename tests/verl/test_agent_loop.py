"""The agent loop, as verl's worker drives it: mixed rows, failures of ours, groups."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap
from verl.utils.dataset.rl_dataset import RLHFDataset

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.environments.tool_environment import ToolEnvironment
from deepeyes_plugins.hosts.verl import agent_loop
from deepeyes_plugins.hosts.verl.agent_loop import DeepEyesAgentLoop
from deepeyes_plugins.hosts.verl.reward import TRAJECTORY_FIELD
from deepeyes_plugins.protocol.actions import Action
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2
from deepeyes_plugins.rollout import InfrastructureError, Observation, Step, Trajectory
from deepeyes_plugins.rollout.log import read_log
from deepeyes_plugins.tools.resources import Resources
from tests.verl.conftest import Output

RECIPE = Path(__file__).parents[2] / "recipes/tiny"
CODE = "Look.</think>\n<code>\n```python\n1\n```\n</code>"
ANSWER = "Seen.</think><answer>red</answer><|im_end|>"


class Engine:
    """Writes code first and then answers, for each conversation."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.asked: list[dict[str, Any]] = []
        self._turns: dict[str, int] = {}

    async def generate(self, request_id: str, **request: Any) -> Output:
        self.asked.append(request)
        turn = self._turns[request_id] = self._turns.get(request_id, 0) + 1
        ids = self._tokenizer.encode(CODE if turn == 1 else ANSWER)
        return Output(ids, [-0.5] * len(ids), {"global_steps": 3, "min_global_steps": 3})


class Sandbox(ToolEnvironment):
    """Works or fails for good, as the next entry of ``works`` says."""

    works: Iterator[bool]

    def __init__(self, resources: Resources) -> None:
        super().__init__(DEEPEYES_V2, [], resources.settings.limits)
        self._works = next(self.works)

    async def step(self, action: Action) -> Step:
        if not self._works:
            raise InfrastructureError("no sandbox")
        return Step(Observation(("seen",)), tool="python")


Play = Callable[..., Any]


@pytest.fixture
def engine(processor: Any) -> Engine:
    return Engine(processor.tokenizer)


@pytest.fixture
def play(tmp_path: Path, engine: Engine, processor: Any, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Play one session; ``retries`` and the like are the settings of failures."""
    monkeypatch.setitem(environments()._entries, "test", (Sandbox, "test"))

    def settings(**failures: Any) -> Path:
        path = tmp_path / "agent.yaml"
        content = {"trajectories": str(tmp_path / "log"), "failures": {"retry_wait": 0, **failures}}
        path.write_text(yaml.safe_dump(content))
        return path

    async def run(row: dict[str, Any], overrides: Sequence[str] = (), **failures: Any) -> Any:
        own = f"deepeyes.agent_config={settings(**failures)}"
        with initialize_config_dir(str(RECIPE), version_base=None):
            config = compose("rl", overrides=[own, *overrides])
        OmegaConf.update(config, "data.max_prompt_length", 500)
        loop = DeepEyesAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=engine,  # type: ignore[arg-type]
            tokenizer=processor.tokenizer,
            processor=processor,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(config.data),
            hf_model_type="qwen2_5_vl",
        )
        return await loop.run({"temperature": 1.0}, **row)

    return run


def row(session: int = 0, env_name: str = "test") -> dict[str, Any]:
    return {
        "raw_prompt": [{"role": "user", "content": "Which colour?"}],
        "data_source": "perception",
        "reward_model": {"ground_truth": "red"},
        "extra_info": {"index": "question-7", "split": "train"},
        "env_name": env_name,
        "uid": "prompt-1",
        "session_id": session,
        "global_steps": 3,
    }


def trajectory_of(output: AgentLoopOutput) -> Trajectory:
    return Trajectory.model_validate_json(output.extra_fields[TRAJECTORY_FIELD])


async def test_agent_and_plain_rows_mix(play: Play, engine: Engine) -> None:
    Sandbox.works = iter([True])
    agent, plain = await asyncio.gather(
        play(row(env_name="test")), play(row(env_name="") | {"uid": "prompt-2"})
    )
    assert trajectory_of(agent).end_reason == "answer"
    assert len(trajectory_of(agent).turns) == 2
    assert 0 in agent.response_mask
    assert trajectory_of(plain).environment == "none"
    assert len(trajectory_of(plain).turns) == 1
    assert set(plain.response_mask) == {1}


@pytest.mark.parametrize(("rollout", "told"), [("vllm", True), ("sglang", False)])
async def test_an_engine_that_resizes_images_is_told_the_bounds(
    play: Play, engine: Engine, rollout: str, told: bool
) -> None:
    Sandbox.works = iter([True])
    bounds = {"min_pixels": 784, "max_pixels": 20_000_000}
    chosen = [f"+data.mm_processor_kwargs.{name}={value}" for name, value in bounds.items()]
    await play(row(), [*chosen, f"actor_rollout_ref.rollout.name={rollout}"])
    assert len(engine.asked) == 2
    for request in engine.asked:
        assert request.get("mm_processor_kwargs") == (bounds if told else None)


async def test_a_failure_of_ours_is_played_again(play: Play, tmp_path: Path) -> None:
    Sandbox.works = iter([False, False, True])
    output = await play(row(), retries=2)
    assert trajectory_of(output).labels == {
        "step": 3,
        "session": 0,
        "split": "train",
        "attempt": 3,
    }
    assert agent_loop._writer.flush(10)
    logged = [(entry.end_reason, entry.labels["attempt"]) for entry in read_log(tmp_path / "log")]
    assert logged == [("infrastructure", 1), ("infrastructure", 2), ("answer", 3)]


async def test_what_fails_for_good_is_missing_from_its_group(play: Play) -> None:
    Sandbox.works = iter([True, False, True, False])
    sessions = [play(row(session), retries=0) for session in range(4)]
    outputs = await asyncio.gather(*sessions)
    assert [isinstance(output, AgentLoopOutput) for output in outputs] == [True, False, True, False]
    assert outputs[1] == outputs[3] == []


@pytest.mark.parametrize("works", [[False] * 4, [True, False, False, False]])
async def test_a_group_of_which_too_few_are_left_fails(play: Play, works: list[bool]) -> None:
    Sandbox.works = iter(works)
    sessions = [play(row(session), retries=0) for session in range(4)]
    outputs = await asyncio.gather(*sessions, return_exceptions=True)
    raised = [output for output in outputs if isinstance(output, Exception)]
    assert len(raised) == 1
    assert isinstance(raised[0], InfrastructureError)
    assert "too few rollouts of prompt prompt-1 succeeded" in str(raised[0])


async def test_one_trajectory_is_enough_where_one_was_asked_for(play: Play) -> None:
    Sandbox.works = iter([True, False])
    assert isinstance(await play(row(), retries=0), AgentLoopOutput)
    with pytest.raises(InfrastructureError):
        await play(row(), retries=0)


async def test_a_trainer_without_groups_is_told_by_an_error(play: Play) -> None:
    Sandbox.works = iter([False])
    alone = row()
    del alone["uid"]
    with pytest.raises(InfrastructureError, match="question-7 failed in 1 attempts"):
        await play(alone, retries=0)


async def test_an_unknown_environment_names_the_row_and_what_exists(play: Play) -> None:
    with pytest.raises(RowError) as error:
        await play(row(env_name="deepeyes_v3"))
    assert "row question-7 of perception (env_name 'deepeyes_v3'): unknown environment" in str(
        error.value
    )
    assert "Did you mean 'deepeyes_v2'?" in str(error.value)
    assert "visual_toolbox_v2" in str(error.value)


async def test_a_row_that_cannot_be_used_is_named_and_not_played_again(
    play: Play, engine: Engine
) -> None:
    with pytest.raises(RowError, match=r"row question-7 of perception .*: no ground truth"):
        await play(row() | {"reward_model": {}}, retries=5)
    assert engine.asked == []


async def test_a_session_that_is_cancelled_leaves_its_group(play: Play) -> None:
    Sandbox.works = iter([True] * 8)
    first = asyncio.ensure_future(play(row(0)))
    others = [asyncio.ensure_future(play(row(session))) for session in (1, 2, 3)]
    await asyncio.sleep(0)
    first.cancel()
    outputs = await asyncio.gather(first, *others, return_exceptions=True)
    assert isinstance(outputs[0], asyncio.CancelledError)
    assert all(isinstance(output, AgentLoopOutput) for output in outputs[1:])
    groups = next(iter(agent_loop._groups.values()))
    assert groups._groups == {}


class TestLimits:
    async def test_the_recipe_limits_a_turn(self, play: Play, engine: Engine) -> None:
        Sandbox.works = iter([True])
        await play(row())
        assert engine.asked[0]["sampling_params"]["max_tokens"] == 80
