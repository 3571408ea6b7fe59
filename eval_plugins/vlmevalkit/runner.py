"""Trajectory runner: a background event loop shared by VLMEvalKit's threads."""

from __future__ import annotations

import asyncio
import atexit
import threading
from concurrent.futures import Future
from typing import Self

from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.hosts.openai import ChatClient, OpenAIPolicy, OpenAISettings
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.rollout import Task, Trajectory, rollout
from deepeyes_plugins.rollout.log import RecordingEnvironment
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.resources import EnvironmentFactory, Resources

_SHUTDOWN_SECONDS = 30.0


class EpisodeRunner:
    """A thread with an event loop whose connections all trajectories share.

    Constructing it checks that the model's servers respond.

    Attributes:
        model: The server's name of the model.
    """

    model: str
    _shared: dict[str, Self] = {}
    _sharing = threading.Lock()

    def __init__(self, agent: AgentSettings, openai: OpenAISettings) -> None:
        """Start the thread.

        Raises:
            UnknownNameError: The agent's environment is not registered.
            InfrastructureError: A server does not respond, or its model is ambiguous.
        """
        self._agent = agent
        self._openai = openai
        self._environment: EnvironmentFactory = environments()[agent.environment]
        self._loop: asyncio.AbstractEventLoop
        self._client: ChatClient
        self._resources: Resources
        self._stop: asyncio.Event
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="deepeyes-episodes", daemon=True
        )
        self._thread.start()
        started.result()
        atexit.register(self.close)

    @classmethod
    def shared(cls, agent: AgentSettings, openai: OpenAISettings) -> Self:
        """Return the process's runner for these settings, created on first use.

        VLMEvalKit's API mode creates one model per dataset and runs all of them concurrently.

        Raises:
            UnknownNameError: The agent's environment is not registered.
            InfrastructureError: A server does not respond, or its model is ambiguous.
        """
        key = agent.model_dump_json() + openai.model_dump_json()
        with cls._sharing:
            runner = cls._shared.get(key)
            if runner is None or not runner._thread.is_alive():
                runner = cls._shared[key] = cls(agent, openai)
            return runner

    def run(self, task: Task) -> tuple[Trajectory, list[EncodedImage]]:
        """Run one trajectory; callable from any thread.

        Returns:
            The trajectory and the images of its observations.
        """
        return asyncio.run_coroutine_threadsafe(self._play(task), self._loop).result()

    def close(self) -> None:
        """Close the connections and stop the thread; idempotent."""
        atexit.unregister(self.close)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_SHUTDOWN_SECONDS)

    async def _serve(self, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._resources = Resources(self._agent)
        async with ChatClient(self._openai) as self._client:
            try:
                await self._client.check()
                self.model = await self._client.model()
            except Exception as error:
                started.set_exception(error)
                return
            started.set_result(None)
            try:
                await self._stop.wait()
            finally:
                await self._resources.aclose()

    async def _play(self, task: Task) -> tuple[Trajectory, list[EncodedImage]]:
        environment = RecordingEnvironment(self._environment(self._resources))
        policy = OpenAIPolicy(self._client, environment.dialect)
        trajectory = await rollout(policy, environment, task, name=self._agent.environment)
        return trajectory, environment.images
