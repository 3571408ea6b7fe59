"""ShareGPT-style rows become conversations in the DeepEyesV2 protocol, or say why not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepeyes_plugins.data.contracts import Conversation, RowError
from deepeyes_plugins.data.formatter import format_row, format_sharegpt, row_warnings
from deepeyes_plugins.data.hooks import formatters

CODE = "<think>Zoom.</think>\n<code>\n```python\nimage_1.crop((0, 0, 9, 9))\n```\n</code>"
SEARCH = (
    '<think>?</think>\n<tool_call>\n{"name": "search", "arguments": {"query": "x"}}\n</tool_call>'
)
ANSWER = "<think>Clear.</think>\n<answer>red</answer>"


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def tool_row(*images: Any, first: str = CODE, last: str = ANSWER) -> dict[str, Any]:
    return {
        "messages": [
            message("system", "Use tools."),
            message("user", "<image>What colour?"),
            message("assistant", first),
            message("user", "Images:\n<image><image>"),
            message("assistant", last),
        ],
        "images": list(images),
    }


def test_formatter_is_registered_as_deepeyes() -> None:
    assert formatters()["deepeyes"] is format_sharegpt


def test_trajectory_with_several_images_in_an_observation() -> None:
    conversation = format_sharegpt(tool_row("a.png", "b.png", "c.png"))

    assert conversation == Conversation(
        (
            ("system", "Use tools."),
            ("user", "<image>What colour?"),
            ("assistant", CODE),
            ("user", "Images:\n<image><image>"),
            ("assistant", ANSWER),
        ),
        ("a.png", "b.png", "c.png"),
    )


@pytest.mark.parametrize("images", [{}, {"images": None}, {"images": []}])
def test_rows_without_images(images: dict[str, Any]) -> None:
    row = {"messages": [message("user", "2 + 2?"), message("assistant", ANSWER)], **images}

    assert format_sharegpt(row).images == ()


def test_classic_sharegpt_keys_and_tool_roles() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Who?"},
            {"from": "gpt", "value": SEARCH},
            {"from": "observation", "value": "<tool_response>\nnone\n</tool_response>"},
            {"from": "function_call", "value": CODE},
            {"from": "tool", "value": "Code execution result:"},
            {"from": "gpt", "value": ANSWER},
        ]
    }

    roles = [role for role, _ in format_sharegpt(row).turns]

    assert roles == ["user", "assistant"] * 3


@pytest.mark.parametrize("text", ["So it is \\boxed{4}.", "<think>Easy.</think>\n4", ANSWER])
def test_plain_chain_of_thought_may_answer_in_any_form(text: str) -> None:
    row = {"messages": [message("user", "2 + 2?"), message("assistant", text)]}

    assert format_sharegpt(row).turns[-1] == ("assistant", text)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (tool_row("a.png", "b.png"), "3 <image> placeholders but 2 images"),
        (tool_row("a.png", "b.png", ""), "image 3 of 'images' is empty"),
        (tool_row(*"abc", first="<think>Hm.</think>"), r"turn 3 .* has no action"),
        (tool_row(*"abc", first="<code>\n1\n</code>"), r"turn 3 .* no fenced Python"),
        (tool_row(*"abc", first=ANSWER), r"turn 3 .* has an answer, but is not the last turn"),
        (tool_row(*"abc", last=CODE), r"turn 5 .* has no <answer>"),
        (tool_row(*"abc", last="It is red."), r"turn 5 .* has no <answer>"),
        (tool_row(*"ab", first="<image>" + CODE), r"turn 3 .* only user turns show images"),
        (tool_row(*"abc", first=CODE + "<|im_end|>"), r"contains <\|im_end\|>.*'< \|im_end\|>'"),
        (tool_row(*"abc", first=CODE + "\ud83d"), r"turn 3 .* lone surrogate"),
        ({"messages": [message("user", "hi")]}, "the last turn is a user turn"),
        ({"messages": [message("system", "hi")]}, "no user and no assistant turn"),
        (
            {"messages": [message("assistant", ANSWER)]},
            "turn 1 has the role assistant; expected user",
        ),
        (
            {"messages": [message("user", "a"), message("user", "b")]},
            "turn 2 has the role user; expected assistant",
        ),
        ({"messages": [message("user", 5)]}, r"turn 1 \(user\) is a int, not a string"),
        ({"messages": [message("critic", "no")]}, "turn 1 has the unknown role 'critic'"),
        ({"messages": ["hi"]}, "turn 1 is a str, not a role and a content"),
        ({"text": "hi"}, r"no list 'messages'.*the row has text \(str\)"),
        (
            {"messages": "hi", "images": None, "id": 1.0, "tools": float("nan")},
            r"the row has id \(float\), messages \(str\)$",
        ),
        ({"messages": None, "images": None}, "the row has nothing"),
        (
            {"messages": [message("user", "<image>a"), message("assistant", ANSWER)], "image": "a"},
            "the row has 'image', as in LLaVA's data",
        ),
        ({"messages": [], "images": "a.png"}, "'images' is a str, not a list"),
    ],
)
def test_unusable_row_says_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        format_sharegpt(row)


def test_open_thinking_and_empty_answers_are_only_doubtful() -> None:
    row = tool_row(*"abc", first=CODE.replace("</think>", ""), last="<answer> </answer>")

    assert list(row_warnings(format_sharegpt(row))) == [
        "turn 3 (assistant) has 1 <think> and 0 </think>",
        "turn 5 (assistant) has an empty answer",
    ]


def test_structure_is_checked_whoever_wrote_the_formatter() -> None:
    with pytest.raises(RowError, match="1 <image> placeholders but 0 images"):
        format_row(lambda row: Conversation((("user", "<image>"), ("assistant", "a"))), {})
    with pytest.raises(RowError, match=r"the formatter failed: KeyError\('question'\)"):
        format_row(lambda row: Conversation((("user", row["question"]),)), {})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "gpt", "", None])
texts = st.sampled_from([CODE, SEARCH, ANSWER, "<image>", "<code>", "</think>"]) | json_values
messages = st.lists(st.fixed_dictionaries({"role": roles, "content": texts}) | json_values)


@settings(deadline=None)
@given(st.fixed_dictionaries({"messages": messages | json_values, "images": json_values}))
def test_whatever_the_row_a_conversation_is_well_formed(row: dict[str, Any]) -> None:
    try:
        conversation = format_sharegpt(row)
    except RowError:
        return
    turns = conversation.turns[conversation.turns[0][0] == "system" :]
    assert [role for role, _ in turns] == ["user", "assistant"] * (len(turns) // 2)
    assert sum(text.count("<image>") for _, text in turns) == len(conversation.images)
