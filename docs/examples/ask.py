"""Ask an agent one question about an image; the model runs on an OpenAI-compatible server."""

import asyncio
from pathlib import Path

from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.hosts.openai import ChatClient, OpenAIPolicy, load_openai_settings
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.prompts import deepeyes_v2_prompt
from deepeyes_plugins.rollout import Task, Trajectory, rollout
from deepeyes_plugins.settings import load_settings
from deepeyes_plugins.tools.resources import Resources


async def ask(image: EncodedImage, question: str) -> Trajectory:
    system = Message("system", (deepeyes_v2_prompt(["python"]),))
    task = Task("photo", (system, Message("user", (image, question))))
    resources = Resources(load_settings())  # agent.yaml: sandbox, search, limits
    environment = environments()["deepeyes_v2"](resources)
    async with ChatClient(load_openai_settings()) as client:  # DEEPEYES_OPENAI_URL
        trajectory = await rollout(OpenAIPolicy(client, environment.dialect), environment, task)
    await resources.aclose()
    return trajectory


photo = EncodedImage(Path("photo.jpg").read_bytes())
trajectory = asyncio.run(ask(photo, "What does the sign say?"))
print(trajectory.answer, trajectory.end_reason, trajectory.tool_calls)
