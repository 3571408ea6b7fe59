"""Plays one episode in the environment that an agent.yaml names and prints it with its reward."""

from __future__ import annotations

import asyncio
import json
import sys

from PIL import Image

from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.rewards.scoring import Scorer
from deepeyes_plugins.rollout import Task, rollout
from deepeyes_plugins.rollout.scripted import ScriptedPolicy
from deepeyes_plugins.settings import load_settings
from deepeyes_plugins.tools.resources import Resources

TURNS = (
    '<tool_call>{"name": "measure_image", "arguments": {"image": 2}}</tool_call>',
    '<tool_call>{"name": "measure_image", "arguments": {"image": 1}}</tool_call>',
    "<answer>60 x 40</answer>",
)


async def play(agent_yaml: str) -> dict[str, object]:
    settings = load_settings(agent_yaml)
    resources = Resources(settings)
    picture = EncodedImage.from_pil(Image.new("RGB", (60, 40)))
    task = Task(
        "picture-1",
        (Message("user", (picture, "How large is the picture?")),),
        data_source="picture-size",
        ground_truth="60 x 40",
    )
    environment = environments()[settings.environment](resources)
    trajectory = await rollout(ScriptedPolicy(TURNS), environment, task, name=settings.environment)
    result = await Scorer(settings.rewards, plugins=settings.plugins).score(task, trajectory)
    await resources.aclose()
    return {
        "trajectory": trajectory.model_dump(mode="json"),
        "score": result.score,
        "parts": dict(result.parts),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(play(sys.argv[1]))))
