"""A parquet file of more than 2 GiB in one row group: what reads it, how fast, in how much memory.

    python benchmarks/rl_data.py [--gigabytes 2.3] [--folder FOLDER] [--processes N]

The file is generated (noise, which nothing compresses) in a temporary folder and deleted after.
Every reader runs in a process of its own; its memory is what it holds itself, pages of mapped files
not counted.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WIDTH, HEIGHT = 640, 560  # A megabyte of noise as PNG.
ROWS_AT_A_TIME = 32
SCHEMA = pa.schema(
    {
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "data_source": pa.string(),
        "reward_model": pa.struct({"ground_truth": pa.string(), "style": pa.string()}),
        "extra_info": pa.struct({"index": pa.int64()}),
    }
)


def generate(path: Path, gigabytes: float) -> None:
    generator = np.random.default_rng(0)

    def row(index: int) -> dict[str, Any]:
        pixels = generator.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
        return {
            "prompt": [{"role": "user", "content": "<image>What?"}],
            "images": [{"bytes": buffer.getvalue(), "path": None}],
            "data_source": "reason",
            "reward_model": {"ground_truth": "A", "style": "rule"},
            "extra_info": {"index": index},
        }

    count = int(gigabytes * 1e9 / (WIDTH * HEIGHT * 3))
    batches = [
        pa.RecordBatch.from_pylist([row(at) for at in range(start, start + ROWS_AT_A_TIME)], SCHEMA)
        for start in range(0, count, ROWS_AT_A_TIME)
    ]
    with pq.ParquetWriter(path, SCHEMA) as writer:
        writer.write_table(pa.Table.from_batches(batches), row_group_size=1 << 40)


def read_with_pandas(path: Path, folder: Path, processes: int) -> dict[str, Any]:
    import pandas

    return {"rows": len(pandas.read_parquet(path))}


def read_with_datasets(path: Path, folder: Path, processes: int) -> dict[str, Any]:
    import datasets

    found = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(folder / "hf"))
    return {"rows": len(found["train"])}


def read_with_us(path: Path, folder: Path, processes: int) -> dict[str, Any]:
    from deepeyes_plugins.data.check.rl import RowRules
    from deepeyes_plugins.data.row_store import Rows, store_files

    timings = {}
    for step in ("checked and stored", "found again"):
        start = time.perf_counter()
        stored = store_files([path], folder / "ours", RowRules(), processes=processes)
        timings[f"{step}, seconds"] = round(time.perf_counter() - start, 3)
    rows = Rows(stored)
    order = random.Random(0).sample(range(len(rows)), 500)
    start = time.perf_counter()
    for index in order:
        assert rows[index]["extra_info"]["index"] == index
    timings["a row at random, milliseconds"] = round((time.perf_counter() - start) * 1e3 / 500, 2)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    return {"rows": len(rows), **timings, "largest child, MiB": children}


READERS = {"pandas": read_with_pandas, "datasets": read_with_datasets, "ours": read_with_us}


def peak_memory(stop: threading.Event, peak: list[int]) -> None:
    while not stop.wait(0.01):
        lines = Path("/proc/self/status").read_text().splitlines()
        held = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
        peak[0] = max(peak[0], held >> 10)


def measure(name: str, path: Path, folder: Path, processes: int) -> dict[str, Any]:
    stop, peak = threading.Event(), [0]
    watcher = threading.Thread(target=peak_memory, args=(stop, peak))
    watcher.start()
    start = time.perf_counter()
    try:
        result = READERS[name](path, folder, processes)
    except Exception as error:
        cause = error.__cause__ or error
        result = {"fails": f"{type(cause).__name__}: {cause}"[:160]}
    seconds = round(time.perf_counter() - start, 1)
    stop.set()
    watcher.join()
    return {**result, "seconds": seconds, "own memory at most, MiB": peak[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        result = measure(options.reader, options.file, options.folder, options.processes)
        sys.stdout.write(json.dumps(result) + "\n")
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "big.parquet"
        generate(path, options.gigabytes)
        size = path.stat().st_size / 2**30
        groups = pq.ParquetFile(path).num_row_groups
        sys.stdout.write(f"{size:.2f} GiB, {groups} row group(s)\n")
        for name in READERS:
            command = [sys.executable, __file__, "--reader", name, "--file", str(path)]
            command += ["--folder", folder, "--processes", str(options.processes)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            sys.stdout.write(f"{name}: {answer.stdout.splitlines()[-1]}\n")


if __name__ == "__main__":
    main()
