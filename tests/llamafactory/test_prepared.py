"""What ``deepeyes data prepare sft`` makes is a data set of LLaMA-Factory's."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

import pytest

from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.prepare import prepare_sft
from tests.llamafactory.conftest import Rows, tokenized, train_arguments


def test_prepared_rows_are_tokenized_as_they_would_be_trained(
    tmp_path: Path,
    tiny_model_path: Path,
    rows: Rows,
    demonstrations: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two published parts, the first without images, and the pictures in a zip file."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    published, out = tmp_path / "published", tmp_path / "out"
    published.mkdir()
    with ZipFile(published / "images.zip", "w") as archive:
        for image in (demonstrations / "images").iterdir():
            archive.write(image, f"images/{image.name}")
    plain = {
        "messages": [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "<think>Easy.</think><answer>4</answer>"},
        ]
    }
    (published / "sft_part_0.json").write_text(json.dumps([plain, plain | {"id": 1}]))
    (published / "sft_part_1.json").write_text(json.dumps([*rows[:3], {"messages": []}]))

    prepared = prepare_sft([published], out)

    assert prepared.summary.written == 5
    arguments = train_arguments(tiny_model_path, out, out, tmp_path / "run")
    samples = tokenized(arguments | {"dataset": "deepeyes_v2_sft"})
    with_images = [bool(sample["images"]) for sample in samples]
    assert with_images == [True, False, False, True, True]
    assert all(any(label >= 0 for label in sample["labels"]) for sample in samples)
    with pytest.raises(DataError, match="which only the templates deepeyes_qwen2_vl"):
        tokenized(arguments | {"dataset": "deepeyes_v2_sft", "template": "qwen2_vl"})
