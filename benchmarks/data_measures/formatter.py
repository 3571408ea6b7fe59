"""The formatter against LLaMA-Factory's own sharegpt converter, on the same rows, one process.

Both run as LLaMA-Factory runs them, by mapping a `datasets` data set. The rows
have the published mixture: four in five are long chains of thought without images, the others
trajectories with two images. The check of the file ahead of training is not part of it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import datasets
from llamafactory.data.converter import get_dataset_converter
from llamafactory.data.parser import DatasetAttr
from llamafactory.hparams import DataArguments
from PIL import Image
from reporting.measures import Figure

from deepeyes_plugins.data.media import MediaRoot
from deepeyes_plugins.hosts.llamafactory.converter import FormatterConverter
from deepeyes_plugins.protocol.dialect import DEEPEYES_V2

SENTENCE = "Let me look at the curve again: f(x) = 3x² − 5, so the minimum lies at x = 0. "
CROP = "plt.imshow(image_1.crop((0, 0, 9, 9)))\nplt.show()"
CODE = f"<think>{SENTENCE * 6}</think>\n<code>\n```python\n{CROP}\n```\n</code>"


def rows(count: int) -> list[dict[str, Any]]:
    """Rows in the published mixture."""
    answer = "</think>\n<answer>\n-5\n</answer>"
    plain = [
        {"role": "user", "content": "What is the minimum of f(x) = 3x² − 5?"},
        {"role": "assistant", "content": "<think>" + SENTENCE * 75 + answer},
    ]
    trajectory = [
        {"role": "system", "content": SENTENCE * 20},
        {"role": "user", "content": "<image>What is the minimum?"},
        {"role": "assistant", "content": CODE},
        {"role": "user", "content": "Code execution result:\nstdout:\n```\n```\nImages:\n<image>"},
        {"role": "assistant", "content": "<think>" + SENTENCE * 6 + answer},
    ]
    return [
        {"messages": trajectory, "images": ["1.png", "2.png"]}
        if number % 5 == 0
        else {"messages": plain, "images": None}
        for number in range(count)
    ]


def measure(quick: bool) -> Figure:
    """Rows per second of both, alternating; the ratio of the medians."""
    count, rounds = (500, 1) if quick else (10_000, 5)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("1.png", "2.png"):
            Image.new("RGB", (64, 64)).save(Path(folder) / name)
        data = datasets.Dataset.from_list(rows(count))
        arguments = DataArguments(
            template="deepeyes_qwen2_vl", dataset_dir=folder, media_dir=folder
        )
        speeds: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name in ("sharegpt", "deepeyes"):
                whole, calls = _speeds(name, data, arguments)
                speeds.setdefault(name, []).append(whole)
                speeds.setdefault(f"{name}, calls only", []).append(calls)
    found = {name: median(values) for name, values in speeds.items()}
    return Figure(
        "formatter, times the rows per second of LLaMA-Factory's sharegpt converter",
        found["deepeyes"] / found["sharegpt"],
        "x",
        0.8,
        {f"{name} [rows/s]": value for name, value in found.items()},
    )


def _speeds(name: str, data: datasets.Dataset, arguments: DataArguments) -> tuple[float, float]:
    """Rows per second with all that `datasets` does, and of the converter's calls alone."""
    entry = DatasetAttr("file", dataset_name="rows.json", formatting=name)
    entry.images, entry.messages = "images", "messages"
    entry.role_tag, entry.content_tag = "role", "content"
    entry.user_tag, entry.assistant_tag, entry.system_tag = "user", "assistant", "system"
    if name == "deepeyes":
        made = FormatterConverter(
            entry, arguments, name, "stop", MediaRoot.open(arguments.media_dir), DEEPEYES_V2.prefill
        )
    else:
        made = get_dataset_converter(name, entry, arguments)
    started = time.perf_counter()
    data.map(made, batched=False, remove_columns=data.column_names, load_from_cache_file=False)
    whole = time.perf_counter() - started
    plain = data.to_list()
    started = time.perf_counter()
    for row in plain:
        made(row)
    calls = time.perf_counter() - started
    return len(plain) / whole, len(plain) / calls
