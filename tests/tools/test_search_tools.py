"""Search tools without a provider say so, and the episode goes on."""

from __future__ import annotations

import pytest

from deepeyes_plugins import plugins
from deepeyes_plugins.rollout import Task
from deepeyes_plugins.settings import AgentSettings
from deepeyes_plugins.tools.resources import Resources


@pytest.mark.parametrize("name", ["search", "image_search"])
async def test_not_configured(name: str) -> None:
    tool = plugins.tools()[name](Resources(AgentSettings()))
    await tool.open(Task("task-1", ()))
    observation = await tool.call({"query": "red"})
    await tool.close()
    assert observation.parts == (
        f"<tool_response>\nError: the tool {name} is not configured; answer without it"
        "\n</tool_response>",
    )
    assert observation.error
    assert not observation.infrastructure


async def test_every_tool_is_registered_under_the_name_the_model_calls_it_by() -> None:
    resources = Resources(AgentSettings())
    for name, factory in plugins.tools().items():
        tool = factory(resources)
        assert tool.name == name
        assert tool.schema["type"] == "object"
        assert set(tool.schema.get("required", [])) <= set(tool.schema["properties"])
