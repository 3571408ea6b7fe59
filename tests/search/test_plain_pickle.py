"""Pickles of plain values are read; nothing in any other is ever run."""

from __future__ import annotations

import contextlib
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.search.plain_pickle import NotPlainError, load_plain

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    assert load_plain(pickle.dumps(value, protocol=protocol)) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(NotPlainError):
        load_plain(data)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_program_is_not_run(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "was_here"
    data = pickle.dumps({"fvqa_1": {"title": [Touch(trap)]}}, protocol=protocol)
    with pytest.raises(NotPlainError):
        load_plain(data)
    assert not trap.exists()
    pickle.loads(data)
    assert trap.exists(), "the trap works"


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(OrderedDict(a=1)),
        pickle.dumps({"a"}),
        pickle.dumps(b"bytes"),
        pickle.dumps(bytearray(b"bytes"), protocol=5),
        pickle.dumps(len),
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"\x80\x02\x82\x01.",  # an object of the extension registry
        b"Pname\n.",  # something outside the file
        b"\x80\x02]\x94(\x8c\x01ab.",  # attributes for a list
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",  # a byte array of a tebibyte
        b"\x80\x02Nr" + struct.pack("<I", 1_000_000) + b".",  # a place far away
        b"Np1000000\n.",
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b".",  # a longer text than there is
        b"I" + b"9" * 10_000 + b"\n.",
        b"h\x05.",  # a value that was never kept
        b"",
        b"{}",
        b"\x80\x04",
    ],
    ids=range(20),
)
def test_what_is_not_plain_is_refused(data: bytes) -> None:
    with pytest.raises(NotPlainError):
        load_plain(data)


def test_a_list_that_holds_itself_does_no_harm() -> None:
    inner: list[Any] = []
    inner.append(inner)
    found = load_plain(pickle.dumps(inner))
    assert found[0] is found
