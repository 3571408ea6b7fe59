"""The stream that keeps the beginning and the end."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.sandbox.kernels.output import BoundedText

pieces = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=30)


@given(pieces, st.integers(2, 60))
def test_short_text_is_whole_and_long_text_keeps_both_ends(parts: list[str], limit: int) -> None:
    stream = BoundedText(limit)
    for part in parts:
        assert stream.write(part) == len(part)
    whole, kept = "".join(parts), stream.take()
    if len(whole) <= limit:
        assert kept == whole
    else:
        head, tail = limit - limit // 2, limit // 2
        mark = f"\n... [{len(whole) - limit} characters cut] ...\n"
        assert kept == whole[:head] + mark + whole[len(whole) - tail :]
    assert stream.take() == ""


@given(st.text())
def test_what_comes_out_is_always_valid_utf8(text: str) -> None:
    stream = BoundedText(10_000)
    stream.write(text)
    kept = stream.take()
    kept.encode("utf-8")
    assert not re.search("[\ud800-\udfff]", kept)
