"""Traces of trajectories in verl's backends (``rollout.trace.backend``: weave, mlflow, trackio).

A trace has a span for the trajectory, one for each turn, inside which is verl's own of the request
to the engine, and one for each tool call. Images are thumbnails as ``data:`` URLs in OpenAI's chat
format, which mlflow stores as attachments, beside the content hash of the original, its name in the
trajectory log.

verl 0.9.1's default trainer chooses no samples to trace, so they are chosen here.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from verl.utils import rollout_trace
from verl.utils.rollout_trace import RolloutTraceConfig, rollout_trace_attr, rollout_trace_op

from deepeyes_plugins.protocol.actions import Action
from deepeyes_plugins.protocol.content import EncodedImage, Part
from deepeyes_plugins.rollout import (
    AssistantTurn,
    Environment,
    Observation,
    Policy,
    Step,
    Task,
    Trajectory,
    rollout,
)
from deepeyes_plugins.rollout.log import RecordingEnvironment

THUMBNAIL_SIDE = 256
"""Longest side of a thumbnail in pixels."""


async def traced_rollout(
    policy: Policy, environment: Environment, task: Task, row: Mapping[str, Any], **options: Any
) -> Trajectory:
    """Run :func:`~deepeyes_plugins.rollout.rollout`, traced if the sample is chosen for it.

    Args:
        policy: Fresh policy.
        environment: Fresh environment.
        task: The question.
        row: verl's row of the sample.
        **options: Further arguments of ``rollout``.
    """
    if RolloutTraceConfig.get_backend() is None or not _choice.includes(row):
        return await rollout(policy, environment, task, **options)
    trace = AgentTrace(policy, environment, task, options)
    with ExitStack() as stack:
        if "uid" in row:  # The legacy trainer has opened the trace itself.
            stack.callback(
                rollout_trace._trace_enabled.reset, rollout_trace._trace_enabled.set(True)
            )
            attributes = rollout_trace_attr(
                sample_index=task.id,
                step=row.get("global_steps"),
                rollout_n=row.get("session_id"),
                validate=split_of(row) not in (None, "train"),
                name="agent_loop",
            )
            stack.enter_context(attributes)
        messages = [
            {"role": message.role, "content": await shown(message.parts)}
            for message in task.messages
        ]
        return (await trace.trajectory(task.data_source, messages)).value


class Record(dict[str, Any]):
    """What a span shows of a value.

    Attributes:
        value: The value.
    """

    def __init__(self, value: Any, **fields: Any) -> None:
        """Show ``fields`` of ``value``."""
        super().__init__(fields)
        self.value = value


class AgentTrace(RecordingEnvironment):
    """Policy and environment of one trajectory whose methods are spans."""

    def __init__(
        self, policy: Policy, environment: Environment, task: Task, options: dict[str, Any]
    ) -> None:
        """Wrap a fresh policy and environment; ``options`` are for ``rollout``."""
        super().__init__(environment)
        self._policy = policy
        self._task = task
        self._options = options
        self._turns = 0
        self.begin, self.observe = policy.begin, policy.observe

    async def act(self) -> AssistantTurn | None:
        """Generate a turn."""
        self._turns += 1
        turn: AssistantTurn | None = (await self.turn(self._turns)).value
        return turn

    async def step(self, action: Action) -> Step:
        """Execute ``action``."""
        self._action = action
        step: Step = (await self.tool_call(type(action).__name__, asdict(action))).value
        return step

    @rollout_trace_op
    async def trajectory(self, data_source: str, messages: Sequence[Mapping[str, Any]]) -> Record:
        """Span of the trajectory."""
        trajectory = await rollout(self, self, self._task, **self._options)
        shows = trajectory.model_dump(
            mode="json", include={"answer", "end_reason", "error", "ground_truth", "seconds"}
        )
        return Record(trajectory, **shows, **trajectory.counts)

    @rollout_trace_op
    async def turn(self, number: int) -> Record:
        """Span of a turn."""
        turn = await self._policy.act()
        if turn is None:
            return Record(None, finish_reason="no tokens left")
        return Record(
            turn, response_text=turn.text, finish_reason=turn.finish_reason, tokens=turn.tokens
        )

    @rollout_trace_op
    async def tool_call(self, action: str, arguments: Mapping[str, Any]) -> Record:
        """Span of an executed action."""
        step = await super().step(self._action)
        observation = step.observation or Observation(())
        return Record(
            step,
            tool=step.tool,
            content=await shown(observation.parts),
            error=observation.error,
            infrastructure_error=observation.infrastructure,
        )


async def shown(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return the parts of a message in OpenAI's chat format, images as thumbnails."""
    return [
        await asyncio.to_thread(_thumbnail, part)
        if isinstance(part, EncodedImage)
        else {"type": "text", "text": part}
        for part in parts
    ]


def _thumbnail(image: EncodedImage) -> dict[str, Any]:
    small = image.pil()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}, "sha256": image.sha256}


class _Choice:
    """Prompts to trace, at most ``rollout.trace.max_samples_per_step_per_worker`` of them.

    They are the first ones of each step and split; data are in random order already.
    """

    def __init__(self) -> None:
        self._prompts: defaultdict[tuple[Any, Any], set[str]] = defaultdict(set)

    def includes(self, row: Mapping[str, Any]) -> bool:
        prompt = row.get("uid")
        if prompt is None:
            return bool(rollout_trace._trace_enabled.get())
        most = RolloutTraceConfig.get_instance().max_samples_per_step_per_worker
        if most is None:
            return True
        chosen = self._prompts[row.get("global_steps"), split_of(row)]
        if len(chosen) < most:
            chosen.add(prompt)
        return prompt in chosen


_choice = _Choice()


def split_of(row: Mapping[str, Any]) -> str | None:
    """Return the split of a row; ``None`` without one."""
    split = (row.get("extra_info") or {}).get("split")
    return split if isinstance(split, str) else None
