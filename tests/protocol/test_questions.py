"""The plain question of a prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.protocol.content import Message
from deepeyes_plugins.protocol.questions import plain_question
from deepeyes_plugins.rollout import Task


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("<image>\nWhat colour is the car?", "What colour is the car?"),
        ("Question: What colour?\nA. red\nB. blue", "What colour?\nA. red\nB. blue"),
        (
            "<image>How many?\nThink first, then answer. Format: <think>...</think> "
            "<tool_call>...</tool_call> (if needed) <answer>...</answer>",
            "How many?",
        ),
        ("<|vision_start|><|image_pad|><|vision_end|>Where?", "Where?"),
        ("What does <answer> mean?", "What does <answer> mean?"),
        ("", ""),
    ],
)
def test_what_remains(prompt: str, question: str) -> None:
    assert plain_question(prompt) == question


@given(st.text())
def test_it_is_tidy_whatever_the_prompt(prompt: str) -> None:
    question = plain_question(prompt)
    assert question == question.strip()
    assert "<image>" not in question


def test_a_task_knows_its_question() -> None:
    messages = (Message("system", ("Use <code>.",)), Message("user", ("<image>Where?",)))
    assert Task("1", messages).question == "Where?"
    assert Task("1", messages, metadata={"question": "When?"}).question == "When?"
    assert Task("1", messages, metadata={"question": None}).question == "Where?"
    assert Task("1", ()).question == ""
