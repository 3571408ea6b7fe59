"""A judge that keeps the contract and follows a script, and makers of trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deepeyes_plugins.judge.contracts import Comparison, JudgeUnavailableError, PromptName, Verdict
from deepeyes_plugins.rewards.scoring import Scorer
from deepeyes_plugins.rollout import EndReason, RewardResult, Task, Trajectory, TurnRecord
from deepeyes_plugins.rollout.trajectory import PartRecord
from deepeyes_plugins.settings import AgentSettings

CODE = "<think>Look.</think>\n<code>\n```python\nimage_1.size\n```\n</code>"
CALL = '<think>Ask.</think>\n<tool_call>\n{"name": "search"}\n</tool_call>'
ZOOM = '<think>Look.</think>\n<tool_call>\n{"name": "image_zoom_in_tool"}\n</tool_call>'
RIGHT = "<think>Seen.</think><answer>red</answer>"
WRONG = "<think>Seen.</think><answer>blue</answer>"


class ScriptedJudge:
    """Says what ``script`` says, and remembers what it was asked."""

    def __init__(self, script: Callable[[Comparison], bool] | bool = True) -> None:
        self._script = script
        self.asked: list[tuple[PromptName, Comparison]] = []
        self.closed = False

    async def compare(self, prompt: PromptName, comparison: Comparison) -> Verdict:
        self.asked.append((prompt, comparison))
        said = self._script if isinstance(self._script, bool) else self._script(comparison)
        return Verdict(said, seconds=0.25, calls=2)

    async def aclose(self) -> None:
        self.closed = True


class AbsentJudge(ScriptedJudge):
    """Cannot be reached."""

    async def compare(self, prompt: PromptName, comparison: Comparison) -> Verdict:
        await super().compare(prompt, comparison)
        raise JudgeUnavailableError("nobody answers at judge:8000")


def code(text: str = CODE, *, output: str = "2", error: str | None = None) -> TurnRecord:
    observation = [PartRecord(text=output)]
    return TurnRecord(text=text, action="code", tool="python", observation=observation, error=error)


def python(source: str) -> TurnRecord:
    return code(f"<think></think>\n<code>\n```python\n{source}\n```\n</code>")


def search(tool: str = "search") -> TurnRecord:
    observation = [PartRecord(text="found")]
    return TurnRecord(text=CALL, action="tool_call", tool=tool, observation=observation)


def zoom(*, image: bool = True) -> TurnRecord:
    observation = [PartRecord(image="a" * 64) if image else PartRecord(text="Error: no such box")]
    return TurnRecord(
        text=ZOOM,
        action="tool_call",
        tool="image_zoom_in_tool",
        observation=observation,
        error=None if image else "no such box",
    )


def say(text: str) -> TurnRecord:
    return TurnRecord(text=text)


def answer(text: str) -> TurnRecord:
    return say(f"<think></think><answer>{text}</answer>")


def settings(rewards: Mapping[str, Any] | None = None) -> AgentSettings:
    return AgentSettings.model_validate({"rewards": dict(rewards or {})})


def scorer(judge: ScriptedJudge | None = None, rewards: Mapping[str, Any] | None = None) -> Scorer:
    return Scorer(settings(rewards).rewards, judge)


async def score(
    source: str,
    *turns: TurnRecord,
    truth: str = "red",
    judge: ScriptedJudge | None = None,
    rewards: Mapping[str, Any] | None = None,
    end_reason: EndReason = EndReason.ANSWER,
    question: str = "What colour is the car?",
) -> RewardResult:
    task = Task(
        "task-1",
        (),
        data_source=source,
        ground_truth=truth,
        metadata={"question": question},
    )
    trajectory = Trajectory(task_id="task-1", turns=list(turns), end_reason=end_reason)
    judging = scorer(judge, rewards)
    try:
        return await judging.score(task, trajectory)
    finally:
        await judging.aclose()
