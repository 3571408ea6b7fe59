"""What the model says, and the one action that is read from it."""

from __future__ import annotations

import time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from deepeyes_plugins.protocol.actions import (
    AnswerAction,
    CodeAction,
    MalformedAction,
    ToolCallAction,
    complete_at_tag,
    parse_action,
)

TAGS = [
    f"<{slash}{name}>" for name in ("think", "code", "answer", "tool_call") for slash in ("", "/")
]
FRAGMENTS = [
    *TAGS,
    "```python\n",
    "\n```\n",
    "```",
    '{"name": "search", "arguments": {"query": "q"}}',
    '{"name": ',
    "print(1)",
    "\n",
    " ",
    "\r\n",
]
tagged_text = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=10)).map("".join)


def code_turn(code: str, fence: str = "```python") -> str:
    return f"<think>Look closer.</think>\n<code>\n{fence}\n{code}\n```\n</code>"


def tool_turn(body: str) -> str:
    return f"<think>Ask.</think>\n<tool_call>\n{body}\n</tool_call>"


class TestTheFourForms:
    def test_code(self) -> None:
        assert parse_action(code_turn("x = 1\nprint(x)")) == CodeAction("x = 1\nprint(x)")

    def test_text_search(self) -> None:
        turn = tool_turn('{"name": "search", "arguments": {"query": "Eiffel tower"}}')
        assert parse_action(turn) == ToolCallAction("search", {"query": "Eiffel tower"})

    @pytest.mark.parametrize(
        "body",
        [
            '{"name": "image_search"}',
            '{"name": "image_search", "arguments": {}}',
            '{"name": "image_search", "arguments": null}',
        ],
    )
    def test_image_search_takes_no_arguments(self, body: str) -> None:
        assert parse_action(tool_turn(body)) == ToolCallAction("image_search", {})

    def test_answer(self) -> None:
        assert parse_action("<think>Seen.</think><answer>\n red \n</answer>") == AnswerAction("red")

    @pytest.mark.parametrize("text", ["", "<think>Hm.</think>", "The answer is red."])
    def test_no_action(self, text: str) -> None:
        assert parse_action(text) is None


class TestPrecedence:
    CODE = "<code>\n```python\n1\n```\n</code>"
    CALL = '<tool_call>\n{"name": "image_search"}\n</tool_call>'
    ANSWER = "<answer>red</answer>"

    def test_a_complete_answer_comes_before_everything(self) -> None:
        assert parse_action(self.CODE + self.CALL + self.ANSWER) == AnswerAction("red")

    def test_code_comes_before_tool_calls(self) -> None:
        assert parse_action(self.CODE + self.CALL) == CodeAction("1")

    def test_an_answer_that_is_not_closed_is_none(self) -> None:
        assert parse_action("<answer>red" + self.CODE) == CodeAction("1")

    def test_the_first_answer_counts(self) -> None:
        assert parse_action("<answer>red</answer><answer>blue</answer>") == AnswerAction("red")

    def test_the_last_code_counts(self) -> None:
        assert parse_action(self.CODE + self.CODE.replace("1", "2")) == CodeAction("2")

    def test_the_last_tool_call_counts(self) -> None:
        other = self.CALL.replace("image_search", "zoom")
        assert parse_action(self.CALL + other) == ToolCallAction("zoom", {})

    @pytest.mark.parametrize("mention", [CODE, CALL, ANSWER])
    def test_tags_in_the_thinking_are_not_actions(self, mention: str) -> None:
        assert parse_action(f"<think>I could write {mention}.</think>") is None
        assert parse_action(f"<think>{mention}</think><answer>no</answer>") == AnswerAction("no")


class TestFences:
    @pytest.mark.parametrize("fence", ["```python", "```py", "```", "```python  "])
    def test_language_is_optional(self, fence: str) -> None:
        assert parse_action(code_turn("x = 1", fence)) == CodeAction("x = 1")

    def test_windows_line_ends(self) -> None:
        turn = code_turn("x = 1\ny = 2").replace("\n", "\r\n")
        assert parse_action(turn) == CodeAction("x = 1\r\ny = 2")

    @pytest.mark.parametrize(
        "code", ['s = "```"', 's = "```python"', "s = '''```'''", "x = 1  # see ```", 's = """```']
    )
    def test_backticks_within_a_line_do_not_end_the_block(self, code: str) -> None:
        assert parse_action(code_turn(f"{code}\nprint(2)")) == CodeAction(f"{code}\nprint(2)")

    @pytest.mark.parametrize(
        "block",
        ["```python\nx = 1```", "```python\nx = 1 ```\n", "text\n```python\nx = 1\n```\nmore text"],
    )
    def test_what_models_write_instead(self, block: str) -> None:
        assert parse_action(f"<code>{block}</code>") == CodeAction("x = 1")

    @pytest.mark.parametrize("block", ["```python\n```", "```python\n\n```"])
    def test_empty_code(self, block: str) -> None:
        assert parse_action(f"<code>\n{block}\n</code>") == CodeAction("")

    @pytest.mark.parametrize("block", ["x = 1", "", "```python x = 1 ```", "```python\nx = 1"])
    def test_a_missing_fence_is_told(self, block: str) -> None:
        action = parse_action(f"<code>{block}</code>")
        assert isinstance(action, MalformedAction)
        assert "```python" in action.message

    def test_an_unclosed_block_is_told(self) -> None:
        action = parse_action("<code>\n```python\nx = 1\n```\n")
        assert isinstance(action, MalformedAction)
        assert "</code>" in action.message

    @given(st.text())
    @example("x = 1  ")
    @example("\n\n  \n")
    @example("x = '''\n`` `\n'''")
    def test_rendered_code_is_read_back_unchanged(self, code: str) -> None:
        """Any code but such with a fence on a line of its own, or with tags of the protocol."""
        assume(not any(line.strip(" \t") == "```" for line in code.splitlines()))
        assume(not any(tag in code for tag in TAGS))
        # The last line end before the fence belongs to the fence, in either convention.
        assume(not code.endswith("\r"))
        assert parse_action(code_turn(code)) == CodeAction(code)


class TestToolCallArguments:
    @pytest.mark.parametrize(
        "given",
        [
            '"arguments": {"query": "a"}',
            '"parameters": {"query": "a"}',
            r'"arguments": "{\"query\": \"a\"}"',
            r'"parameters": "{\"query\": \"a\"}"',
            '"arguments": null, "parameters": {"query": "a"}',
            '"arguments": {"query": "a"}, "parameters": {"query": "a"}',
            '"id": "1", "type": "function", "arguments": {"query": "a"}',
        ],
    )
    def test_the_forms_of_other_models_are_read(self, given: str) -> None:
        action = parse_action(tool_turn(f'{{"name": "search", {given}}}'))
        assert action == ToolCallAction("search", {"query": "a"})

    @pytest.mark.parametrize("given", ["", ', "arguments": null', ', "parameters": ""'])
    def test_there_may_be_none(self, given: str) -> None:
        action = parse_action(tool_turn(f'{{"name": "image_search"{given}}}'))
        assert action == ToolCallAction("image_search", {})


class TestToolCallFaults:
    @pytest.mark.parametrize(
        ("body", "told"),
        [
            ("{'name': 'search'}", "not valid JSON"),
            ('{"name": "search"', "not valid JSON"),
            ("", "not valid JSON"),
            ("[" * 100_000, "not valid JSON"),
            ("9" * 10_000, "not valid JSON"),
            ("[]", '"name"'),
            ('"search"', '"name"'),
            ("{}", '"name"'),
            ('{"name": ""}', '"name"'),
            ('{"name": 3}', '"name"'),
            ('{"name": "search", "arguments": "query"}', '"arguments"'),
            ('{"name": "search", "arguments": ["query"]}', '"arguments"'),
            ('{"name": "search", "parameters": ["query"]}', '"arguments"'),
            ('{"name": "search", "arguments": "[1]"}', '"arguments"'),
            ('{"name": "search", "arguments": {"query": "a"}, "parameters": {}}', "differ"),
            ('{"name": "search", "query": "a"}', "found: query"),
            ('{"name": "search", "args": {"query": "a"}}', "found: args"),
        ],
    )
    def test_the_model_is_told_what_is_wrong(self, body: str, told: str) -> None:
        action = parse_action(tool_turn(body))
        assert isinstance(action, MalformedAction)
        assert told in action.message

    def test_an_unclosed_call_is_told(self) -> None:
        action = parse_action('<tool_call>\n{"name": "search"}')
        assert isinstance(action, MalformedAction)
        assert "</tool_call>" in action.message


class TestAnyText:
    @given(tagged_text)
    def test_nothing_raises(self, text: str) -> None:
        action = parse_action(text)
        assert action is None or isinstance(
            action, CodeAction | ToolCallAction | AnswerAction | MalformedAction
        )

    @pytest.mark.parametrize(
        "flood",
        ["<answer>", "<code>", "<code>\n```\n", "<tool_call>", "</code><code>", " ", "\n ", "`"],
    )
    def test_a_degenerate_turn_takes_no_time(self, flood: str) -> None:
        text = "<code>```python\n" + flood * (200_000 // len(flood))
        started = time.perf_counter()
        parse_action(text)
        parse_action(text + "</code>")
        assert time.perf_counter() - started < 1


class TestCompleteAtTag:
    STOP = ("</code>", "</tool_call>")

    def test_cuts_behind_the_first_tag_and_keeps_it(self) -> None:
        assert complete_at_tag("a</code>b</tool_call>c", self.STOP) == "a</code>"
        assert complete_at_tag("a</tool_call>b</code>c", self.STOP) == "a</tool_call>"

    def test_other_text_is_unchanged(self) -> None:
        assert complete_at_tag("<answer>red</answer>", self.STOP) == "<answer>red</answer>"
        assert complete_at_tag("a</code>b", ()) == "a</code>b"

    @given(tagged_text)
    def test_is_a_prefix_and_idempotent(self, text: str) -> None:
        cut = complete_at_tag(text, self.STOP)
        assert text.startswith(cut)
        assert complete_at_tag(cut, self.STOP) == cut
        assert sum(cut.count(tag) for tag in self.STOP) == any(tag in text for tag in self.STOP)
