"""The system prompts and the parser speak one language."""

from __future__ import annotations

import re

import pytest

from deepeyes_plugins.protocol.actions import (
    AnswerAction,
    CodeAction,
    ToolCallAction,
    parse_action,
)
from deepeyes_plugins.protocol.coordinates import Coordinates
from deepeyes_plugins.protocol.prompts import deepeyes_v2_prompt


def test_every_form_that_the_prompt_shows_is_an_action() -> None:
    prompt = deepeyes_v2_prompt(["python", "search", "image_search", "read_page"])
    forms = re.findall(r"<code>.*?</code>|<tool_call>.*?</tool_call>", prompt, re.DOTALL)
    assert [parse_action(form) for form in forms] == [
        CodeAction("# your code"),
        ToolCallAction("search", {"query": "what to search for"}),
        ToolCallAction("image_search"),
        ToolCallAction("read_page", {"url": "address of a web page"}),
    ]
    assert isinstance(parse_action(prompt.rpartition("## Answer")[2]), AnswerAction)


def test_only_the_available_tools_are_described() -> None:
    assert "search" not in deepeyes_v2_prompt()
    assert "run Python or answer." in deepeyes_v2_prompt()
    assert "<code>" not in deepeyes_v2_prompt([])


def test_a_model_that_sees_in_thousandths_is_told_how_to_get_pixels() -> None:
    prompt = deepeyes_v2_prompt(["python"], Coordinates.THOUSANDTHS)
    assert "image_1.width / 1000" in prompt
    assert "1000" not in deepeyes_v2_prompt(["python"])
    assert "1000" not in deepeyes_v2_prompt(["search"], Coordinates.THOUSANDTHS)


def test_a_tool_without_a_description_is_refused() -> None:
    with pytest.raises(ValueError, match="no description of the tools sonar"):
        deepeyes_v2_prompt(["python", "sonar"])
