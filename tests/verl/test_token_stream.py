"""Generated ids are kept as they are, and every id knows whose it is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.hosts.verl.tokens import CutTurn, TokenStream, cut_turn

ids = st.lists(st.integers(0, 500), max_size=30)
pieces = st.lists(st.tuples(st.booleans(), ids), max_size=8)


@given(prompt=ids, pieces=pieces)
def test_ids_masks_and_log_probs_stay_aligned(
    prompt: list[int], pieces: list[tuple[bool, list[int]]]
) -> None:
    stream = TokenStream(prompt, budget=1000)
    for generated, piece in pieces:
        if generated:
            stream.append_generated(piece, [float(-token) for token in piece])
        else:
            stream.append_context(piece)

    assert stream.ids == prompt + [token for _, piece in pieces for token in piece]
    assert stream.response_mask == [int(mine) for mine, piece in pieces for _ in piece]
    assert stream.log_probs == [float(-t) if mine else 0.0 for mine, p in pieces for t in p]


def test_nothing_is_appended_beyond_the_budget() -> None:
    stream = TokenStream([1], budget=3)
    stream.append_generated([2, 3], None)
    with pytest.raises(ValueError, match="2 ids exceed the remaining budget of 1"):
        stream.append_context([4, 5])
    assert stream.response_ids == [2, 3]


def test_log_probs_are_given_for_all_turns_or_for_none() -> None:
    stream = TokenStream([1], budget=10)
    stream.append_generated([2], [-1.0])
    stream.append_generated([3], None)
    stream.append_generated([4], [-1.0])
    assert stream.log_probs is None


def test_a_log_prob_that_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="2 generated ids but 1 log-probabilities"):
        TokenStream([1], budget=10).append_generated([2, 3], [-1.0])


def spell(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))


@given(st.text("<>/codeabx", max_size=40))
def test_a_turn_is_cut_behind_its_first_closing_tag(text: str) -> None:
    turn = cut_turn([ord(letter) for letter in text], spell, ["</code>"], frozenset())
    before, tag, _ = text.partition("</code>")
    assert turn == CutTurn(len(before + tag), before + tag)


# A tag may begin or end inside a token, spread over several, or be one token.
vocabulary = ("</co", "de>", "</code>", "de>\n\n", "</tool_call>", "</", "tool", "_call>", "x", "")
tokens = st.lists(st.integers(0, len(vocabulary) - 1), max_size=60)


def read(ids: Sequence[int]) -> str:
    return "".join(vocabulary[token] for token in ids)


@given(ids=tokens, forbidden=st.frozensets(st.integers(0, len(vocabulary) - 1), max_size=2))
def test_the_shortest_prefix_with_a_tag_is_the_turn(
    ids: list[int], forbidden: frozenset[int]
) -> None:
    tags = ("</code>", "</tool_call>")
    allowed = next((at for at, token in enumerate(ids) if token in forbidden), len(ids))
    ends = (at for at in range(allowed + 1) if any(tag in read(ids[:at]) for tag in tags))
    count = next(ends, allowed)
    assert cut_turn(ids, read, tags, forbidden) == CutTurn(count, read(ids[:count]))


def test_a_long_turn_that_ends_at_its_tag_is_read_three_times() -> None:
    ids = [ord(letter) for letter in "x" * 8000 + "</code>"]
    reads: list[int] = []

    def counted(tokens: Sequence[int]) -> str:
        reads.append(len(tokens))
        return spell(tokens)

    assert cut_turn(ids, counted, ["</code>"], frozenset()).length == len(ids)
    assert len(reads) <= 3


def test_a_turn_ends_before_a_forbidden_token() -> None:
    forbidden = frozenset([ord("#")])
    assert cut_turn([ord(c) for c in "ab#</code>"], spell, ["</code>"], forbidden).text == "ab"
    assert cut_turn([ord(c) for c in "</code>#"], spell, ["</code>"], forbidden).length == 7


pads = ("<|pad", "|>", "<|pad|>", ">x<|", "pad|", "x", "</code>", "")


@given(ids=st.lists(st.integers(0, len(pads) - 1), max_size=40))
def test_a_turn_ends_before_a_forbidden_text_is_complete(ids: list[int]) -> None:
    def read(ids: Sequence[int]) -> str:
        return "".join(pads[token] for token in ids)

    turn = cut_turn(ids, read, ["</code>"], frozenset(), ["<|pad|>"])

    assert turn.text == read(ids[: turn.length])
    assert "<|pad|>" not in turn.text
    if turn.length < len(ids) and not turn.text.endswith("</code>"):
        assert "<|pad|>" in read(ids[: turn.length + 1])
