"""The rollout loop: one episode of a policy in an environment."""

from __future__ import annotations

import asyncio
import logging
import time

from deepeyes_plugins.protocol.actions import (
    Action,
    AnswerAction,
    CodeAction,
    MalformedAction,
    ToolCallAction,
)
from deepeyes_plugins.renamed import renamed_arguments
from deepeyes_plugins.rollout.contracts import (
    AssistantTurn,
    Environment,
    InfrastructureError,
    Observation,
    Policy,
    Task,
)
from deepeyes_plugins.rollout.trajectory import (
    ActionKind,
    EndReason,
    PartRecord,
    Trajectory,
    TurnRecord,
)

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 60.0
"""Seconds for closing an environment, in addition to the trajectory's wall time."""

_KINDS: dict[type[Action], ActionKind] = {
    CodeAction: "code",
    ToolCallAction: "tool_call",
    AnswerAction: "answer",
    MalformedAction: "malformed",
}


_closings: set[asyncio.Task[None]] = set()
"""References to running close tasks: asyncio itself holds only weak ones."""


@renamed_arguments(generation_counts="wall_time_includes_generation")
async def rollout(
    policy: Policy,
    environment: Environment,
    task: Task,
    *,
    name: str = "",
    wall_time_includes_generation: bool = True,
) -> Trajectory:
    """Play one episode.

    The environment opens while the policy generates its first turn. On the last turn that the
    limits allow, no tool is called: the model could not read the result.

    Args:
        policy: Fresh policy, for this trajectory only.
        environment: Fresh environment; opened and closed here.
        task: The question.
        name: Name of the environment, for the record.
        wall_time_includes_generation: Whether generation counts toward ``limits.wall_time``;
            ``False`` where training pauses the engine.

    Returns:
        The trajectory. An infrastructure error is not raised: it ends the trajectory with
        :attr:`EndReason.INFRASTRUCTURE` and its reason.
    """
    trajectory = Trajectory(
        task_id=task.id,
        data_source=task.data_source,
        environment=name,
        question=task.question,
        ground_truth=task.ground_truth,
        end_reason=EndReason.WALL_TIME,
    )
    started = time.monotonic()
    opening = asyncio.ensure_future(environment.open(task))
    deadline = asyncio.timeout(environment.limits.wall_time)
    try:
        async with deadline:
            await policy.begin(task)
            timed = policy if wall_time_includes_generation else _Untimed(policy, deadline)
            trajectory.end_reason = await _play(timed, environment, opening, trajectory)
    except Exception as error:
        if not (isinstance(error, TimeoutError) and deadline.expired()):
            known = isinstance(error, InfrastructureError)
            logger.warning("task %s ended early: %r", task.id, error, exc_info=not known)
            trajectory.end_reason = EndReason.INFRASTRUCTURE
            trajectory.error = str(error) if known else repr(error)
    finally:
        # A second cancellation stops this wait; closing continues.
        closing = asyncio.create_task(_close(environment, opening))
        _closings.add(closing)
        closing.add_done_callback(_closings.discard)
        await asyncio.shield(closing)
    trajectory.seconds = time.monotonic() - started
    return trajectory


class _Untimed:
    """A policy whose generation time does not count toward a deadline."""

    def __init__(self, policy: Policy, deadline: asyncio.Timeout) -> None:
        self._policy = policy
        self._deadline = deadline
        self.begin = policy.begin
        self.observe = policy.observe

    async def act(self) -> AssistantTurn | None:
        clock = asyncio.get_running_loop().time
        due = self._deadline.when()
        left = None if due is None else due - clock()
        self._deadline.reschedule(None)
        turn = await self._policy.act()
        if left is not None:
            self._deadline.reschedule(clock() + left)
        return turn


async def _close(environment: Environment, opening: asyncio.Future[None]) -> None:
    """Cancel opening and close the environment; log a failure, since the episode is over."""
    opening.cancel()
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await asyncio.gather(opening, return_exceptions=True)
            await environment.close()
    except Exception:
        logger.warning("closing the environment failed", exc_info=True)


async def _play(
    policy: Policy,
    environment: Environment,
    opening: asyncio.Future[None],
    trajectory: Trajectory,
) -> EndReason:
    limits = environment.limits
    failures = 0
    while True:
        started = time.monotonic()
        turn = await _act(policy, limits.turn_timeout)
        if turn is None:
            return EndReason.TOKENS
        action = environment.parse(turn)
        record = TurnRecord(
            text=turn.text,
            finish_reason=turn.finish_reason,
            tokens=turn.tokens,
            prompt_tokens=turn.prompt_tokens,
            action=_KINDS[type(action)] if action is not None else None,
            generate_seconds=time.monotonic() - started,
        )
        trajectory.turns.append(record)
        if isinstance(action, AnswerAction):
            trajectory.answer = action.text
            return EndReason.ANSWER
        if action is None or turn.finish_reason == "length":
            return EndReason.TOKENS if turn.finish_reason == "length" else EndReason.NO_ACTION
        if len(trajectory.turns) >= limits.turns:
            return EndReason.TURNS

        started = time.monotonic()
        await opening
        step = await environment.step(action)
        record.tool_seconds = time.monotonic() - started
        record.tool = step.tool
        observation = step.observation
        if observation is None:
            return EndReason.NO_ACTION
        record.error = observation.error
        record.infrastructure_error = observation.infrastructure
        record.tool_figures = dict(observation.figures)
        record.observation = await asyncio.to_thread(_records, observation)
        failures += observation.infrastructure
        if failures > limits.infrastructure_errors:
            raise InfrastructureError(
                f"{failures} tool calls failed with an infrastructure error, the last one of "
                f"{step.tool}: {observation.error}"
            )
        if trajectory.images_returned > limits.images:
            return EndReason.IMAGES
        if not await policy.observe(observation):
            return EndReason.TOKENS


async def _act(policy: Policy, seconds: float) -> AssistantTurn | None:
    """Generate a turn.

    Raises:
        InfrastructureError: The engine takes longer than ``seconds``.
    """
    timeout = asyncio.timeout(seconds)
    try:
        async with timeout:
            return await policy.act()
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise InfrastructureError(
            f"the engine generated no turn within {seconds:g} s (limits.turn_timeout)"
        ) from error


def _records(observation: Observation) -> list[PartRecord]:
    """Record an observation's parts. Slow for large images: call it in a thread."""
    return [PartRecord.of(part) for part in observation.parts]
