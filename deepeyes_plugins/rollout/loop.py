"""The only loop that joins a policy and an environment."""

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
"""Seconds that an environment may take to close, beyond the wall time of the trajectory."""

_KINDS: dict[type[Action], ActionKind] = {
    CodeAction: "code",
    ToolCallAction: "tool_call",
    AnswerAction: "answer",
    MalformedAction: "malformed",
}


_closings: set[asyncio.Task[None]] = set()
"""Keeps what is closing from being collected when nobody waits for it any more."""


async def rollout(
    policy: Policy,
    environment: Environment,
    task: Task,
    *,
    name: str = "",
    generation_counts: bool = True,
) -> Trajectory:
    """Play one episode.

    The environment opens while the policy takes in the prompt and generates its first turn. On
    the last turn that the limits allow, a tool is no longer called: its result could not be read.

    Args:
        policy: Fresh policy, for this trajectory only.
        environment: Fresh environment; opened and closed here.
        task: The question.
        name: Name of the environment, for the record.
        generation_counts: Whether the wall time goes on while the policy generates; ``False``
            where the engine is stopped now and then to train.

    Returns:
        The record, whatever happened: a failure of ours ends with
        :attr:`EndReason.INFRASTRUCTURE` and its reason, it does not raise.
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
            playing = policy if generation_counts else _Untimed(policy, deadline)
            trajectory.end_reason = await _play(playing, environment, opening, trajectory)
    except Exception as error:
        if not (isinstance(error, TimeoutError) and deadline.expired()):
            known = isinstance(error, InfrastructureError)
            logger.warning("task %s ended early: %r", task.id, error, exc_info=not known)
            trajectory.end_reason = EndReason.INFRASTRUCTURE
            trajectory.error = str(error) if known else repr(error)
    finally:
        # A second cancellation ends the waiting, not the closing.
        closing = asyncio.create_task(_close(environment, opening))
        _closings.add(closing)
        closing.add_done_callback(_closings.discard)
        await asyncio.shield(closing)
    trajectory.seconds = time.monotonic() - started
    return trajectory


class _Untimed:
    """A policy whose turns do not count for a deadline."""

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
    """Stop the opening and close; a failure to do so is logged, since the episode is over."""
    opening.cancel()
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await asyncio.gather(opening, return_exceptions=True)
            await environment.close()
    except Exception:
        logger.warning("an environment cannot be closed", exc_info=True)


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
        turn = await _act(policy, limits.engine_patience)
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
                f"{failures} tool calls failed because of our side, the last one of "
                f"{step.tool}: {observation.error}"
            )
        if trajectory.images_returned > limits.images:
            return EndReason.IMAGES
        if not await policy.observe(observation):
            return EndReason.TOKENS


async def _act(policy: Policy, seconds: float) -> AssistantTurn | None:
    """Have a turn generated.

    Raises:
        InfrastructureError: The engine takes longer: it hangs.
    """
    patience = asyncio.timeout(seconds)
    try:
        async with patience:
            return await policy.act()
    except TimeoutError as error:
        if not patience.expired():
            raise
        raise InfrastructureError(
            f"the engine has given no turn for {seconds:g} s (limits.engine_patience)"
        ) from error


def _records(observation: Observation) -> list[PartRecord]:
    """Hashing large images takes its time: not for the event loop."""
    return [PartRecord.of(part) for part in observation.parts]
