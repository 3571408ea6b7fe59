"""The format score: tags complete, and an answer at the end. Rule by rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.protocol.actions import AnswerAction, parse_action
from deepeyes_plugins.rewards.format import final_answer, is_well_formed

CODE = "<think>Look.</think>\n<code>\n```python\n1\n```\n</code>"
CALL = '<think>Ask.</think>\n<tool_call>\n{"name": "search"}\n</tool_call>'
ANSWER = "<think>Seen.</think><answer>red</answer>"
TAGS = [
    f"<{slash}{name}>" for name in ("think", "code", "answer", "tool_call") for slash in ("", "/")
]


@pytest.mark.parametrize(
    "turns",
    [
        pytest.param([ANSWER], id="thinking, then an answer"),
        pytest.param([CODE, CALL, ANSWER], id="several turns"),
        pytest.param([ANSWER.removeprefix("<think>")], id="the prompt had the first <think>"),
        pytest.param(["\n" + ANSWER], id="white space before the first <think>"),
        pytest.param([ANSWER + " Done."], id="text behind the answer"),
        pytest.param([ANSWER + "<answer>blue</answer>"], id="two answers, the first not empty"),
        pytest.param(["<think><answer></think><answer>a</answer>"], id="a tag in the thinking"),
        pytest.param([CALL.replace("</tool_call>", ""), ANSWER], id="tool calls do not matter"),
    ],
)
def test_well_formed(turns: list[str]) -> None:
    assert is_well_formed(turns)


@pytest.mark.parametrize(
    "turns",
    [
        pytest.param([], id="no turns"),
        pytest.param([""], id="an empty turn"),
        pytest.param(["<think>Hm.<answer>red</answer>"], id="thinking not closed"),
        pytest.param([ANSWER + "</think>"], id="one </think> too many"),
        pytest.param(["<answer>red</answer>"], id="no thinking at all"),
        pytest.param([CODE, "<answer>red</answer></think>"], id="a later <think> is missing"),
        pytest.param([CODE.replace("</code>", ""), ANSWER], id="code not closed"),
        pytest.param([CODE + "</code>", ANSWER], id="code closed twice"),
        pytest.param(["<think>Seen.</think>red"], id="no answer"),
        pytest.param(["<think><answer>red</answer></think>"], id="an answer only in the thinking"),
        pytest.param(["<think>Seen.</think><answer>red"], id="answer not closed"),
        pytest.param([ANSWER + "<answer>"], id="one <answer> too many"),
        pytest.param(["<think>Seen.</think><answer> \n</answer>"], id="an empty answer"),
        pytest.param(
            ["<think>Seen.</think><answer></answer><answer>a</answer>"], id="the first one is empty"
        ),
        pytest.param([ANSWER, CODE], id="the answer is not at the end"),
        pytest.param([CODE], id="it ends with code"),
    ],
)
def test_malformed(turns: list[str]) -> None:
    assert not is_well_formed(turns)


def test_search_data_ask_for_balanced_tool_calls() -> None:
    assert is_well_formed([CALL, ANSWER], tool_calls=True)
    assert not is_well_formed([CALL.replace("</tool_call>", ""), ANSWER], tool_calls=True)


class TestFinalAnswer:
    def test_is_the_first_one_behind_the_thinking(self) -> None:
        turn = "<think><answer>a</answer></think><answer> b </answer><answer>c</answer>"
        assert final_answer([CODE, turn]) == "b"

    @pytest.mark.parametrize("turns", [[], [""], [CODE], [ANSWER, CODE]])
    def test_none(self, turns: list[str]) -> None:
        assert final_answer(turns) is None

    @given(st.lists(st.sampled_from(TAGS) | st.text(max_size=5)).map("".join))
    def test_is_what_ended_the_episode(self, text: str) -> None:
        """The reward judges the answer on which the environment ended, and no other."""
        action = parse_action(text)
        expected = action.text if isinstance(action, AnswerAction) else None
        assert final_answer([text]) == expected
        assert is_well_formed([text]) <= bool(expected)
