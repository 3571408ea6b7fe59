"""An evaluation while vLLM's real server is killed and started again on its port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.hosts.openai import ChatClient, OpenAIPolicy, OpenAISettings
from deepeyes_plugins.protocol.content import Message
from deepeyes_plugins.rollout import EndReason, Task, Trajectory, rollout
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.resources import Resources
from tests.verl.conftest import picture
from tests.vllm.conftest import Server

TASKS = [
    Task(str(number), (Message("user", (picture(40 + number, 64), f"Which colour? {number}")),))
    for number in range(16)
]


@asynccontextmanager
async def evaluation(url: str, **settings: Any) -> AsyncIterator[Any]:
    """Plays questions, four at a time."""
    values = {"profile": "vllm", "max_tokens": 40, "concurrency": 4, **settings}
    resources = Resources(AgentSettings())
    async with ChatClient(OpenAISettings(url=url, **values)) as client:

        async def play(task: Task) -> Trajectory:
            environment = environments()["none"](resources)
            return await rollout(OpenAIPolicy(client, environment.dialect), environment, task)

        yield play
    await resources.aclose()


async def test_no_sample_is_wrong_or_missing_because_the_server_was_killed(server: Server) -> None:
    patience = {"retries": 1000, "retry_wait": 0.1, "retry_wait_maximum": 1}
    async with (
        evaluation(server.url, **patience) as patient,
        evaluation(server.url, retries=0, circuit_failures=100) as impatient,
    ):
        undisturbed = await asyncio.gather(*map(patient, TASKS))
        await impatient(TASKS[0])
        waiting = [asyncio.create_task(patient(task)) for task in TASKS]
        failing = [asyncio.create_task(impatient(task)) for task in TASKS]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        server.kill()
        lost = await asyncio.gather(*failing)
        assert not all(one.done() for one in waiting)
        server.start()
        await asyncio.to_thread(server.wait)
        repeated = await asyncio.gather(*waiting)
        again = await asyncio.gather(*map(impatient, TASKS))

    expected = [one.assistant_turns for one in undisturbed]
    assert len({str(turns) for turns in expected}) > 1
    assert [one.assistant_turns for one in repeated] == expected
    assert [one.assistant_turns for one in again] == expected
    failed = [one for one in lost if one.end_reason is EndReason.INFRASTRUCTURE]
    assert failed
    for one in failed:
        assert server.url in str(one.error)
        assert one.answer is None
    rest = [(one.task_id, one.assistant_turns) for one in lost if one not in failed]
    assert rest == [(task, expected[int(task)]) for task, _ in rest]
