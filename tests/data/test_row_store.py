"""A file is checked and stored once; from then on any of its rows can be read."""

from __future__ import annotations

import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deepeyes_plugins.data import row_store
from deepeyes_plugins.data.check.rl import RowRules
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.row_store import IMAGE_SIZES, Rows, store_files

RULES = RowRules()


def png(width: int = 20, height: int = 10) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def row(index: int, **columns: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": "<image>What?"}],
        "images": [{"bytes": png(20 + index), "path": None}],
        "data_source": "reason",
        "env_name": "deepeyes_v2",
        "reward_model": {"ground_truth": "A"},
        "extra_info": {"index": index},
        **columns,
    }


def text_row(index: int) -> dict[str, Any]:
    return row(index, prompt=[{"role": "user", "content": "2 + 2?"}], images=None)


def write(path: Path, rows: list[dict[str, Any]], group: int = 3, **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group, **options)
    return path


def indices(rows: Rows) -> list[int]:
    return [one["extra_info"]["index"] for one in rows]


def test_rows_of_many_row_groups_in_order(tmp_path: Path) -> None:
    source = [row(index) if index % 3 else text_row(index) for index in range(100)]
    (stored,) = store_files([write(tmp_path / "x.parquet", source)], tmp_path / "cache", RULES)

    rows = Rows([stored])

    assert stored.report.ok and len(rows) == 100
    assert 10 < len(stored.shards) <= 32
    assert list(rows) == source
    assert rows.read(4, ("data_source", IMAGE_SIZES)) == {
        "data_source": "reason",
        IMAGE_SIZES: [[24, 10]],
    }
    assert rows.read(3, (IMAGE_SIZES,)) == {IMAGE_SIZES: []}
    with pytest.raises(IndexError):
        rows[100]


def test_rows_can_be_chosen_and_sent_to_another_process(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", [row(index) for index in range(10)])
    rows = Rows(store_files([file], tmp_path / "cache", RULES))
    rows[0]

    chosen = rows.select([9, 1, 5]).select([2, 0])

    assert indices(chosen) == [5, 9]
    assert indices(rows[2:4]) == [2, 3]
    assert len(pickle.dumps(chosen)) < 2000
    assert indices(pickle.loads(pickle.dumps(chosen))) == [5, 9]


def test_files_with_other_columns_and_types_make_rows_with_the_same_keys(tmp_path: Path) -> None:
    """The published files differ so; Hugging Face datasets refuses to concatenate them."""
    without = row(1)
    del without["env_name"], without["images"]
    without |= {"prompt": [{"role": "user", "content": "2?"}], "extra_info": {"index": "b", "q": 1}}
    files = [
        write(tmp_path / "a.parquet", [row(0, ability="see")]),
        write(tmp_path / "b.parquet", [without]),
    ]

    first, second = Rows(store_files(files, tmp_path / "cache", RULES), {"env_name": "none"})

    assert list(first) == list(second)
    assert (second["env_name"], second["images"], second["ability"]) == ("none", None, None)
    assert second["extra_info"] == {"index": "b", "q": 1}


def test_dictionaries_and_long_types_are_read(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row(index) for index in range(8)])
    images = pa.large_list(pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()}))
    table = table.set_column(1, "images", table["images"].cast(images))
    table = table.set_column(2, "data_source", table["data_source"].dictionary_encode())
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)

    rows = Rows(store_files([tmp_path / "x.parquet"], tmp_path / "cache", RULES))

    assert list(rows) == [row(index) for index in range(8)]


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    source = [row(index) for index in range(60)]
    source[40]["images"] = [{"bytes": png()[:40], "path": None}]
    file = write(tmp_path / "x.parquet", source, group=20)

    one, two = (
        store_files([file], tmp_path / str(processes), RULES, processes=processes, keep_bad=True)[0]
        for processes in (1, 2)
    )

    assert one.report.rows == two.report.rows == 60
    for stored in (one, two):
        assert [(problem.row, problem.key) for problem in stored.report.errors] == [(41, "images")]
    assert indices(Rows([two])) == list(range(60))


def test_a_process_that_is_killed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies.sh").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "dies.sh").chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "dies.sh"))
    file = write(tmp_path / "x.parquet", [row(index) for index in range(8)], group=4)

    with pytest.raises(DataError, match=r"ended with -9.*data\.check_processes"):
        store_files([file], tmp_path / "cache", RULES, processes=2)

    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_restart_does_not_check_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = write(tmp_path / "x.parquet", [row(0)]), tmp_path / "cache"
    before = store_files([file], cache, RULES)
    monkeypatch.setattr(row_store, "check_rl_parquet", lambda *_, **__: pytest.fail("checked"))

    assert store_files([file], cache, RULES) == before
    with pytest.raises(pytest.fail.Exception):
        store_files([file], cache, RowRules(environment="none"))
    os.utime(file, ns=(1, 1))
    with pytest.raises(pytest.fail.Exception):
        store_files([file], cache, RULES)
    assert not list(cache.glob("*.partial"))


def test_what_was_wrong_is_looked_at_again(tmp_path: Path) -> None:
    """An image that was missing can be put in its place without touching the parquet file."""
    file = write(tmp_path / "x.parquet", [row(0, images=[{"bytes": None, "path": "a.png"}])])
    (bad,) = store_files([file], tmp_path / "cache", RULES)
    (tmp_path / "a.png").write_bytes(png())

    (good,) = store_files([file], tmp_path / "cache", RULES)

    assert "a.png cannot be read" in bad.report.describe()
    assert good.report.ok
    (image,) = Rows([good])[0]["images"]
    assert image["path"] == str(tmp_path / "a.png")


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    pq.write_table(pa.Table.from_pylist([row(0)]).slice(0, 0), tmp_path / "empty.parquet")

    cut, empty = store_files(
        [tmp_path / "cut.parquet", tmp_path / "empty.parquet"], tmp_path / "cache", RULES
    )

    assert "cannot be read as parquet" in cut.report.describe()
    assert "the file has no rows" in empty.report.describe()
    with pytest.raises(FileNotFoundError):
        store_files([tmp_path / "gone.parquet"], tmp_path / "cache", RULES)


def test_a_full_disk_is_not_taken_for_a_bad_file(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", [row(0)])
    span = row_store._Span(file, range(1), 1, Path("/dev/full"))
    with pytest.raises(DataError, match=r"/dev cannot be written: .*data\.cache_dir"):
        row_store._store_span(span, RULES, 1)


def test_the_same_file_twice(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", [row(0), row(1)])
    assert indices(Rows(store_files([file, file], tmp_path / "cache", RULES))) == [0, 1, 0, 1]
