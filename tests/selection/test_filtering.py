"""Several files of questions become one, and what cannot is named before anything is played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.selection.filtering import common_columns, write_kept
from deepeyes_plugins.selection.questions import Question, read_questions


def question(index: int | str, **more: Any) -> dict[str, Any]:
    return {
        "data_source": "reason",
        "prompt": [{"role": "user", "content": f"What is {index} + 1?"}],
        "reward_model": {"ground_truth": "2"},
        "extra_info": {"index": index, **more},
    }


def file_of(path: Path, *rows: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_files_with_other_columns_become_one(tmp_path: Path) -> None:
    files = [
        file_of(tmp_path / "a.parquet", question(1), question(2)),
        file_of(tmp_path / "b.parquet", question(3, answer="4")),
    ]
    judged = {
        one.key: {"verdict": "hopeless" if one.task.id == "2" else "kept"}
        for one in read_questions(files, "deepeyes_v2")
        if isinstance(one, Question)
    }
    output = tmp_path / "kept.parquet"
    told = list(write_kept(files, "deepeyes_v2", judged, output, common_columns(files)))
    assert [row["verdict"] for row in told] == ["kept", "hopeless", "kept"]
    assert [row["extra_info"] for row in pq.read_table(output).to_pylist()] == [
        {"index": 1, "answer": None},
        {"index": 3, "answer": "4"},
    ]


def test_files_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    files = [
        file_of(tmp_path / "a.parquet", question(1)),
        file_of(tmp_path / "b.parquet", question("one")),
    ]
    with pytest.raises(DataError, match=r"b\.parquet: its columns conflict with those of"):
        common_columns(files)


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    file = file_of(tmp_path / "a.parquet", question(1))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as parquet, perhaps"):
        list(read_questions([file], "deepeyes_v2"))
