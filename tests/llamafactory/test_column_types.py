"""The types of columns are followed as Hugging Face datasets brings them together."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.arrow_writer import ArrowWriter
from datasets.packaged_modules.json.json import Json, JsonConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from deepeyes_plugins.data import column_types
from deepeyes_plugins.data.files import training_rows

SMALL = 16 << 10
"""The least that datasets reads at a time."""

VALUES: dict[str, Any] = {
    "nothing": None,
    "number": 1,
    "fraction": 1.5,
    "whole fraction": 2.0,
    "large number": 1 << 63,
    "truth": True,
    "text": "x",
    "date": "2024-01-01",
    "time": "2024-01-01T10:00:00Z",
    "empty list": [],
    "numbers": [1],
    "texts": ["x"],
    "object": {"a": 1},
    "other field": {"b": 1},
    "other type": {"a": "x"},
    "objects": [{"a": 1}],
    "other objects": [{"a": None, "b": [2]}],
}
CONVERTED: dict[str, list[set[str]]] = {
    "array": [{"fraction", "truth"}, {"whole fraction", "truth"}],
    "late": [{"number", "date"}, {"number", "time"}],
}
"""What datasets makes something else of, without a word; here it is a problem."""


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)


def is_read(file: Path, chunk: int) -> bool:
    """Whether datasets, as a trainer calls it, reads a file."""
    builder = Json.__new__(Json)
    builder.config = JsonConfig(name="x", chunksize=chunk)
    writer = ArrowWriter(path=str(file.with_suffix(".arrow")))
    try:
        for _, table in builder._generate_tables([[str(file)]]):
            writer.write_table(table)
    except (ValueError, TypeError, NotImplementedError, OverflowError):
        return False
    return True


def problems(file: Path, chunk: int) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column_types, "CHUNK_BYTES", chunk)
        return [f"row {row.number}: {row.finding}" for row in training_rows(file) if row.finding]


@pytest.mark.parametrize("form", ["array", "lines", "late"])
def test_pairs_of_values_in_a_column(form: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    chunk = SMALL if form == "late" else column_types.CHUNK_BYTES
    for one, other in itertools.product(VALUES, VALUES):
        first = {"k": "t" * (SMALL if form == "late" else 1), "x": VALUES[one]}
        rows = [first, {"k": "t", "x": VALUES[other]}, {"k": "t", "x": VALUES[other]}]
        lines = "\n".join(map(json.dumps, rows))
        file.write_text(json.dumps(rows) if form == "array" else lines)
        found = problems(file, chunk)
        assert all(found[0].startswith("row 2: x: ") for _ in found)
        if found and {one, other} in CONVERTED.get(form, ()):
            continue
        assert is_read(file, chunk) == (not found), (form, one, other, found)


ENTRIES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, "", "a", "2024-01-01"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=150)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from("xyz"), ENTRIES, min_size=1), min_size=2),
    form=st.sampled_from(["array", "lines", "late"]),
)
def test_a_file_without_problems_is_read(rows: list[dict[str, Any]], form: str) -> None:
    if form == "late":
        rows[0] |= {"k": "t" * SMALL}
    chunk = SMALL if form == "late" else column_types.CHUNK_BYTES
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.json"
        file.write_text(json.dumps(rows) if form == "array" else "\n".join(map(json.dumps, rows)))
        assert problems(file, chunk) or is_read(file, chunk)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"a": {"b": [1]}}, {"a": {"b": [1, "x"]}}], "a: a.b[]: a string, but a number in row 1"),
        ([{"m": "t"}, {"m": "\ud83d"}], "m: a lone surrogate"),
    ],
)
def test_the_place_is_named(rows: list[Any], told: str, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))

    (found,) = problems(file, column_types.CHUNK_BYTES)

    assert found.startswith(f"row 2: {told}") and "`deepeyes data prepare sft`" in found
    assert not is_read(file, column_types.CHUNK_BYTES)
