"""Agent loop ``deepeyes``: runs one trajectory per verl session."""

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
from deepeyes_plugins.hosts.verl.tracing import traced_rollout
from deepeyes_plugins.plugins import UnknownNameError
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.remote.retry import Backoff
from deepeyes_plugins.rollout import (
    EndReason,
    Environment,
    InfrastructureError,
    Trajectory,
)
from deepeyes_plugins.rollout.log import BackgroundWriter, RecordingEnvironment, TrajectoryLog
from deepeyes_plugins.settings import load_settings
from deepeyes_plugins.tools.resources import Resources

logger = logging.getLogger(__name__)

_resources: WeakKeyDictionary[asyncio.AbstractEventLoop, Resources] = WeakKeyDictionary()
_groups: WeakKeyDictionary[Resources, Groups] = WeakKeyDictionary()
_writer = BackgroundWriter("trajectories")


def shared_resources(settings_path: str | None) -> Resources:
    """Return the resources of the running event loop, created on first use.

    The sandbox is the one in the settings, else the servers of this Ray cluster, else a server
    that is started here.

    Args:
        settings_path: An agent.yaml, or ``None`` for ``DEEPEYES_AGENT_CONFIG`` or the defaults.
    """
    loop = asyncio.get_running_loop()
    if loop not in _resources:
        _resources[loop] = Resources(load_settings(settings_path), find_sandbox=ensure_server)
    return _resources[loop]


class DeepEyesAgentLoop(AgentLoopBase):
    """Agent loop whose environment is chosen by a row's ``env_name``.

    Settings are in the recipe's section ``deepeyes``::

        deepeyes:
          agent_config: recipes/agent.yaml   # environment, sandbox, limits, failures
          turn_tokens: 8192                  # maximum per turn; overrides limits.turn_tokens
    """

    async def run(
        self, sampling_params: dict[str, Any], **kwargs: Any
    ) -> AgentLoopOutput | list[AgentLoopOutput]:
        """Run one trajectory.

        Args:
            sampling_params: Sampling parameters such as the temperature.
            **kwargs: The row: ``raw_prompt``, ``data_source``, ``reward_model``, ``extra_info``,
                ``env_name`` and further columns of the dataset.

        Returns:
            Token ids with masks, images and the trajectory for the reward. An empty list after an
            infrastructure error in all attempts: the session is then excluded from its group, and
            the advantage is computed over the others.

        Raises:
            InfrastructureError: All attempts failed, and too few sessions of the group succeeded.
            RowError: The row cannot be used. verl marks its group as failed and continues.
        """
        resources = shared_resources(self._section.get("agent_config"))
        groups = _groups.setdefault(resources, Groups(resources.settings.failures.min_group_size))
        prompt = kwargs.get("uid")
        if prompt is None:  # verl's legacy trainer, which cannot exclude sessions.
            return await self._run_with_retries(sampling_params, kwargs, resources)
        groups.enter(prompt)
        succeeded = False
        try:
            output = await self._run_with_retries(sampling_params, kwargs, resources)
            succeeded = True
        except InfrastructureError as error:
            failure = error
        finally:
            enough = groups.leave(prompt, succeeded=succeeded)
        if not enough:
            raise InfrastructureError(f"too few rollouts of prompt {prompt} succeeded")
        if succeeded:
            return output
        logger.warning("%s", failure)
        return []

    @property
    def _section(self) -> Mapping[str, Any]:
        return self.config.get("deepeyes") or {}

    async def _run_with_retries(
        self, sampling_params: dict[str, Any], row: Mapping[str, Any], resources: Resources
    ) -> AgentLoopOutput:
        """Run a trajectory, with retries after infrastructure errors.

        Raises:
            InfrastructureError: All attempts failed.
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
                await asyncio.sleep(Backoff(failures.retry_wait).seconds(attempt))
            environment = RecordingEnvironment(make_environment(resources))
            policy = self._policy(sampling_params, environment)
            trajectory = await traced_rollout(
                policy,
                environment,
                task,
                row,
                name=name,
                wall_time_includes_generation=self._engine_never_stops,
            )
            trajectory.labels = {**labels(row), "attempt": attempt + 1}
            _log(resources, trajectory, environment.images)
            failed = trajectory.end_reason is EndReason.INFRASTRUCTURE
            if not failed and policy.stream.response_ids:
                return self._output(policy, trajectory)
        raise InfrastructureError(
            f"task {task.id} failed in {failures.retries + 1} attempts: "
            f"{trajectory.error or trajectory.end_reason}"
        )

    @property
    def _engine_never_stops(self) -> bool:
        """Whether every generation finishes before training, as in the synchronous trainer only."""
        modes = self.config.trainer.get("v1") or {}
        return modes.get("trainer_mode", "sync") == "sync"

    def _policy(self, sampling_params: dict[str, Any], environment: Environment) -> TokenPolicy:
        limits = environment.limits
        response = self.rollout_config.response_length
        if limits.tokens is not None:
            response = min(response, limits.tokens)
        request: dict[str, Any] = {"request_id": uuid4().hex}
        # vLLM resizes images again, by default with the model's own bounds. If the run's bounds are
        # wider, placeholders would not match. verl's SGLang server takes no such argument.
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
    """Write a trajectory to the log, if one is configured, in the background."""
    if resources.settings.trajectories is not None:
        write = partial(TrajectoryLog(resources.settings.trajectories).write, trajectory, images)
        _writer.submit(write, size=sum(len(image.data) for image in images))


def describe(row: Mapping[str, Any]) -> str:
    """Describe a row for messages."""
    index = (row.get("extra_info") or {}).get("index", "without extra_info.index")
    return f"row {index} of {row.get('data_source')} (env_name {row.get('env_name')!r})"


def labels(row: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Return the log labels of a trajectory: training step, session and split."""
    extra_info = row.get("extra_info") or {}
    found = {
        "step": row.get("global_steps"),
        "session": row.get("session_id"),
        "split": extra_info.get("split"),
    }
    return {key: value for key, value in found.items() if isinstance(value, int | float | str)}
