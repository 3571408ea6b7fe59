"""The agent loop ``deepeyes``: one verl session is one trajectory of the agent core."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from verl.experimental.agent_loop.agent_loop import (
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
)

from deepeyes_plugins import plugins
from deepeyes_plugins.data.rl_rows import environment_name, task_from_row
from deepeyes_plugins.hosts.ray.sandbox import ensure_server
from deepeyes_plugins.hosts.verl.output import TrajectoryOutput
from deepeyes_plugins.hosts.verl.policy import TokenBudget, TokenPolicy
from deepeyes_plugins.rollout import EndReason, InfrastructureError, Trajectory, rollout
from deepeyes_plugins.rollout.log import RecordingEnvironment, TrajectoryLog
from deepeyes_plugins.settings import load_settings
from deepeyes_plugins.tools.resources import Resources

logger = logging.getLogger(__name__)

_resources: WeakKeyDictionary[asyncio.AbstractEventLoop, Resources] = WeakKeyDictionary()


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
          agent_config: recipes/agent.yaml   # environment, sandbox, limits
          turn_tokens: 8192                  # longest single turn
    """

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Play one trajectory.

        Args:
            sampling_params: Temperature and the like.
            **kwargs: The row: ``raw_prompt``, ``data_source``, ``reward_model``, ``extra_info``,
                ``env_name`` and whatever else the data set has.

        Returns:
            Token ids with masks, images and the trajectory for the reward.

        Raises:
            InfrastructureError: Our side failed for good; verl leaves the session out of its
                group instead of training on it.
            RowError: The row cannot be used.
        """
        section = self.config.get("deepeyes") or {}
        resources = shared_resources(section.get("agent_config"))
        name = environment_name(kwargs, resources.settings.environment)
        task = task_from_row(kwargs)
        environment = RecordingEnvironment(plugins.environments()[name](resources))
        response_length = self.rollout_config.response_length
        policy = TokenPolicy(
            partial(self.server_manager.generate, request_id=uuid4().hex),
            self.continuous_token_builder,
            environment.dialect,
            TokenBudget(
                prompt=self.rollout_config.prompt_length,
                response=response_length,
                turn=section.get("turn_tokens") or response_length,
            ),
            sampling_params,
            engine=self.rollout_config.name,
        )
        trajectory = await rollout(policy, environment, task, name=name)
        trajectory.labels = labels(kwargs)
        if resources.settings.trajectories is not None:
            log = TrajectoryLog(resources.settings.trajectories)
            await asyncio.to_thread(log.append, trajectory, environment.images)
        if trajectory.end_reason is EndReason.INFRASTRUCTURE or not policy.stream.response_ids:
            raise InfrastructureError(
                f"task {task.id} is left out: {trajectory.error or trajectory.end_reason}"
            )
        return self._output(policy, trajectory)

    def _output(self, policy: TokenPolicy, trajectory: Trajectory) -> AgentLoopOutput:
        stream = policy.stream
        metrics = AgentLoopMetrics(
            generate_sequences=sum(turn.generate_seconds for turn in trajectory.turns),
            tool_calls=sum(turn.tool_seconds for turn in trajectory.turns),
        )
        observations = sum(turn.observation is not None for turn in trajectory.turns)
        return TrajectoryOutput(
            trajectory,
            prompt_ids=stream.prompt_ids,
            response_ids=stream.response_ids,
            response_mask=stream.response_mask,
            response_logprobs=stream.log_probs or None,
            multi_modal_data={"images": policy.images} if policy.images else {},
            num_turns=1 + len(trajectory.turns) + observations,
            metrics=metrics,
            extra_fields={
                **policy.engine_fields,
                "turn_scores": [],
                "tool_rewards": [],
            },
        )


def labels(row: Mapping[str, Any]) -> dict[str, int | float | str]:
    """What tells a trajectory of one training step from another's in the log."""
    extra_info = row.get("extra_info") or {}
    found = {
        "step": row.get("global_steps"),
        "session": row.get("session_id"),
        "split": extra_info.get("split"),
    }
    return {key: value for key, value in found.items() if isinstance(value, int | float | str)}
