"""The agent loop ``deepeyes``: one verl session is one trajectory of the agent core."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from verl.experimental.agent_loop.agent_loop import (
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
)

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.rl_rows import environment_name, task_from_row
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.hosts.ray.sandbox import ensure_server
from deepeyes_plugins.hosts.verl.groups import Groups
from deepeyes_plugins.hosts.verl.output import TrajectoryOutput
from deepeyes_plugins.hosts.verl.policy import TokenBudget, TokenPolicy
from deepeyes_plugins.plugins import UnknownNameError
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.rollout import (
    EndReason,
    Environment,
    InfrastructureError,
    Trajectory,
    rollout,
)
from deepeyes_plugins.rollout.log import BackgroundWriter, RecordingEnvironment, TrajectoryLog
from deepeyes_plugins.settings import load_settings
from deepeyes_plugins.tools.resources import Resources

logger = logging.getLogger(__name__)

_resources: WeakKeyDictionary[asyncio.AbstractEventLoop, Resources] = WeakKeyDictionary()
_groups: WeakKeyDictionary[Resources, Groups] = WeakKeyDictionary()
_writer = BackgroundWriter("trajectories")


def shared_resources(settings_path: str | None) -> Resources:
    """The resources of the running event loop, made on first use.

    The sandbox is the one in the settings, else the servers of this Ray cluster, else one that is
    started here.

    Args:
        settings_path: An agent.yaml, or ``None`` for ``DEEPEYES_AGENT_CONFIG`` or the defaults.
    """
    loop = asyncio.get_running_loop()
    if loop not in _resources:
        _resources[loop] = Resources(load_settings(settings_path), find_sandbox=ensure_server)
    return _resources[loop]


class DeepEyesAgentLoop(AgentLoopBase):
    """Plays every row: its ``env_name`` chooses the environment.

    Settings come from the recipe's own section::

        deepeyes:
          agent_config: recipes/agent.yaml   # environment, sandbox, limits, failures
          turn_tokens: 8192                  # longest single turn; wins over limits.turn_tokens
    """

    async def run(
        self, sampling_params: dict[str, Any], **kwargs: Any
    ) -> AgentLoopOutput | list[AgentLoopOutput]:
        """Play one trajectory.

        Args:
            sampling_params: Temperature and the like.
            **kwargs: The row: ``raw_prompt``, ``data_source``, ``reward_model``, ``extra_info``,
                ``env_name`` and whatever else the data set has.

        Returns:
            Token ids with masks, images and the trajectory for the reward. Or nothing, if our
            side failed for good: the session is then missing from its group, whose advantage is
            that of the others.

        Raises:
            InfrastructureError: Our side failed for good and too few of the group are left.
            RowError: The row cannot be used. verl marks its group as failed and goes on.
        """
        resources = shared_resources(self._section.get("agent_config"))
        groups = _groups.setdefault(resources, Groups(resources.settings.failures.min_group_size))
        prompt = kwargs.get("uid")
        if prompt is None:  # A trainer that cannot do without a session, verl's old one.
            return await self._play(sampling_params, kwargs, resources)
        groups.enter(prompt)
        kept = False
        try:
            output = await self._play(sampling_params, kwargs, resources)
            kept = True
        except InfrastructureError as error:
            failure = error
        finally:
            enough = groups.leave(prompt, kept=kept)
        if not enough:
            raise InfrastructureError(f"too few trajectories of prompt {prompt} are left")
        if kept:
            return output
        logger.warning("%s", failure)
        return []

    @property
    def _section(self) -> Mapping[str, Any]:
        return self.config.get("deepeyes") or {}

    async def _play(
        self, sampling_params: dict[str, Any], row: Mapping[str, Any], resources: Resources
    ) -> AgentLoopOutput:
        """Play until it succeeds, as often as the settings allow.

        Raises:
            InfrastructureError: It did not.
            RowError: The row cannot be used.
        """
        try:
            task = await asyncio.to_thread(task_from_row, row)
            name = environment_name(row, resources.settings.environment)
            make_environment = environments()[name]
        except (RowError, UnknownNameError) as error:
            raise RowError(f"{describe(row)}: {error}") from error
        failures = resources.settings.failures
        for attempt in range(failures.retries + 1):
            if attempt:
                await asyncio.sleep(failures.retry_wait * 2 ** (attempt - 1))
            environment = RecordingEnvironment(make_environment(resources))
            policy = self._policy(sampling_params, environment)
            trajectory = await rollout(
                policy,
                environment,
                task,
                name=name,
                wall_time_includes_generation=self._engine_never_stops,
            )
            trajectory.labels = {**labels(row), "attempt": attempt + 1}
            _log(resources, trajectory, environment.images)
            failed = trajectory.end_reason is EndReason.INFRASTRUCTURE
            if not failed and policy.stream.response_ids:
                return self._output(policy, trajectory)
        raise InfrastructureError(
            f"task {task.id} is left out after {failures.retries + 1} attempts: "
            f"{trajectory.error or trajectory.end_reason}"
        )

    @property
    def _engine_never_stops(self) -> bool:
        """Only the synchronous trainer lets every generation end before it trains."""
        modes = self.config.trainer.get("v1") or {}
        return modes.get("trainer_mode", "sync") == "sync"

    def _policy(self, sampling_params: dict[str, Any], environment: Environment) -> TokenPolicy:
        limits = environment.limits
        response = self.rollout_config.response_length
        if limits.tokens is not None:
            response = min(response, limits.tokens)
        request: dict[str, Any] = {"request_id": uuid4().hex}
        # vLLM resizes again, by the model's own bounds if it is not told ours: where ours are
        # wider, placeholders would no longer fit. verl's SGLang server takes no such argument.
        if self.mm_processor_kwargs and self.rollout_config.name != "sglang":
            request["mm_processor_kwargs"] = self._get_mm_processor_kwargs()
        return TokenPolicy(
            partial(self.server_manager.generate, **request),
            self.continuous_token_builder,
            environment.dialect,
            TokenBudget(
                prompt=self.rollout_config.prompt_length,
                response=response,
                turn=self._section.get("turn_tokens") or limits.turn_tokens,
            ),
            sampling_params,
            engine=self.rollout_config.name,
        )

    def _output(self, policy: TokenPolicy, trajectory: Trajectory) -> AgentLoopOutput:
        stream = policy.stream
        metrics = AgentLoopMetrics(
            generate_sequences=sum(turn.generate_seconds for turn in trajectory.turns),
            tool_calls=sum(turn.tool_seconds for turn in trajectory.turns),
            num_preempted=-1 if policy.num_preempted is None else policy.num_preempted,
        )
        observations = sum(turn.observation is not None for turn in trajectory.turns)
        return TrajectoryOutput(
            trajectory,
            prompt_ids=stream.prompt_ids,
            response_ids=stream.response_ids,
            response_mask=stream.response_mask,
            response_logprobs=stream.log_probs or None,
            routed_experts=policy.routed_experts,
            multi_modal_data={"images": policy.images} if policy.images else {},
            num_turns=1 + len(trajectory.turns) + observations,
            metrics=metrics,
            extra_fields={
                **policy.engine_fields,
                "turn_scores": [],
                "tool_rewards": [],
            },
        )


def _log(resources: Resources, trajectory: Trajectory, images: Sequence[EncodedImage]) -> None:
    """Have a trajectory written, if there is a log, without waiting for it."""
    if resources.settings.trajectories is not None:
        write = partial(TrajectoryLog(resources.settings.trajectories).write, trajectory, images)
        _writer.submit(write, size=sum(len(image.data) for image in images))


def describe(row: Mapping[str, Any]) -> str:
    """Name a row for people."""
    index = (row.get("extra_info") or {}).get("index", "without extra_info.index")
    return f"row {index} of {row.get('data_source')} (env_name {row.get('env_name')!r})"


def labels(row: Mapping[str, Any]) -> dict[str, int | float | str]:
    """What tells a trajectory of one training step from another's in the log."""
    extra_info = row.get("extra_info") or {}
    found = {
        "step": row.get("global_steps"),
        "session": row.get("session_id"),
        "split": extra_info.get("split"),
    }
    return {key: value for key, value in found.items() if isinstance(value, int | float | str)}
