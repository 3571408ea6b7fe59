"""Rows that cannot be used are named before training starts, and dropped only if that was asked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from deepeyes_plugins.data.checks import DataError
from deepeyes_plugins.hosts.verl.dataset import DeepEyesDataset
from deepeyes_plugins.quickstart.datasets import write_rl
from deepeyes_plugins.quickstart.task import split_examples


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    write_rl(split_examples("train", 3), tmp_path / "good.parquet", "train")
    return list(pq.read_table(tmp_path / "good.parquet").to_pylist())


def open_dataset(
    rows: list[dict[str, Any]], schema_of: Path, folder: Path, processor: Any, **settings: Any
) -> DeepEyesDataset:
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(schema_of)), path)
    config = OmegaConf.create(
        {"max_prompt_length": 128, "filter_overlong_prompts": False, **settings}
    )
    return DeepEyesDataset([str(path)], processor.tokenizer, config, processor)


FAULTS = {
    "no image": (lambda row: row.update(images=[]), "images"),
    "broken image": (lambda row: row["images"][0].update(bytes=b"\x89PNG rubbish"), "image 1"),
    "unknown environment": (lambda row: row.update(env_name="deepeyes_v3"), "deepeyes_v2"),
    "no ground truth": (lambda row: row.update(reward_model=None), "ground truth"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_row_stops_the_run_and_is_named(
    fault: str, rows: list[dict[str, Any]], tmp_path: Path, processor: Any
) -> None:
    spoil, word = FAULTS[fault]
    bad = copy.deepcopy(rows)
    spoil(bad[1])
    with pytest.raises(DataError, match=rf"rows\.parquet, row 2: .*{word}"):
        open_dataset(bad, tmp_path / "good.parquet", tmp_path, processor)


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_rows_can_be_dropped(
    fault: str, rows: list[dict[str, Any]], tmp_path: Path, processor: Any
) -> None:
    bad = copy.deepcopy(rows)
    FAULTS[fault][0](bad[1])
    dataset = open_dataset(bad, tmp_path / "good.parquet", tmp_path, processor, bad_rows="drop")
    assert [dataset[at]["index"] for at in range(len(dataset))] == [
        rows[at]["extra_info"]["index"] for at in (0, 2)
    ]


def test_good_rows_pass(rows: list[dict[str, Any]], tmp_path: Path, processor: Any) -> None:
    dataset = open_dataset(rows, tmp_path / "good.parquet", tmp_path, processor)
    assert len(dataset) == 3
    content = dataset[0]["raw_prompt"][1]["content"]
    assert [part["type"] for part in content] == ["image", "text"]


def test_an_unknown_policy_is_refused(
    rows: list[dict[str, Any]], tmp_path: Path, processor: Any
) -> None:
    with pytest.raises(ValueError, match=r"data\.bad_rows is 'ignore'"):
        open_dataset(rows, tmp_path / "good.parquet", tmp_path, processor, bad_rows="ignore")
