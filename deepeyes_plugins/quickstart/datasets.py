"""Writers that put examples of the framed-dot task into the files that each framework reads."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from deepeyes_plugins.data.dataset_info import DATASET_INFO
from deepeyes_plugins.data.writers import register_dataset
from deepeyes_plugins.quickstart.task import Example, demonstration, prompt

_RL_SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "agent_name": pa.string(),
        "env_name": pa.string(),
        "ability": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "reward_model": pa.struct({"ground_truth": pa.string(), "style": pa.string()}),
        "extra_info": pa.struct(
            {
                "index": pa.string(),
                "split": pa.string(),
                "question": pa.string(),
                "answer": pa.string(),
            }
        ),
    }
)


def write_sft(
    examples: Iterable[Example],
    folder: Path,
    *,
    name: str = "framed_dots",
    formatting: str = "deepeyes",
) -> None:
    """Writes demonstrations as a LLaMA-Factory dataset.

    Args:
        examples: The examples to demonstrate.
        folder: Receives `<name>.json`, `images/` and `dataset_info.json`; created if missing.
        name: The dataset's name in `dataset_info.json`.
        formatting: The converter that LLaMA-Factory applies, "deepeyes" or "sharegpt".
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for example in examples:
        turns = demonstration(example)
        rows.append(
            {
                "messages": [{"role": turn.role, "content": turn.text} for turn in turns],
                "images": [_store(image, folder) for turn in turns for image in turn.images],
            }
        )
    _write_json(rows, folder / f"{name}.json")
    register_dataset(folder / DATASET_INFO, name, f"{name}.json", formatting=formatting)


def write_rl(examples: Iterable[Example], path: Path, split: str) -> None:
    """Writes a parquet file of questions for reinforcement learning with verl.

    The answer stands only in `reward_model` and `extra_info`, which the policy never sees.

    Args:
        examples: The examples to ask about.
        path: The file to write; its folder is created if missing.
        split: The value of `extra_info.split`, for example "train" or "val".
    """
    rows = [
        {
            "data_source": "perception",
            "agent_name": "deepeyes",
            "env_name": "deepeyes_v2",
            "ability": "perception",
            "prompt": [{"role": turn.role, "content": turn.text} for turn in prompt(example)],
            "images": [{"bytes": _png(example.picture), "path": None}],
            "reward_model": {"ground_truth": example.answer, "style": "rule"},
            "extra_info": {
                "index": str(example.seed),
                "split": split,
                "question": example.question,
                "answer": example.answer,
            },
        }
        for example in examples
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=_RL_SCHEMA), path)


def write_vlmevalkit(examples: Iterable[Example], path: Path) -> None:
    """Writes a VLMEvalKit table: columns index, image (base64 PNG), question and answer.

    Args:
        examples: The examples to ask about.
        path: The TSV file to write; its folder is created if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["index", "image", "question", "answer"])
        for index, example in enumerate(examples):
            image = base64.b64encode(_png(example.picture)).decode("ascii")
            writer.writerow([index, image, example.question, example.answer])


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # The noise is made of blocks, so that the fastest level already compresses well.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _store(image: Image.Image, folder: Path) -> str:
    """Saves an image under the hash of its bytes, which says nothing about the answer."""
    data = _png(image)
    relative = f"images/{hashlib.sha256(data).hexdigest()[:24]}.png"
    (folder / relative).write_bytes(data)
    return relative


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
