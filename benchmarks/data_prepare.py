"""How long ``deepeyes data prepare``, ``prompt`` and ``split`` take, and in how much memory.

    python benchmarks/data_prepare.py [--gigabytes 2.3] [--rows 30000] [--folder FOLDER]

The inputs are generated in a temporary folder: for RL one row group of PNG images without
compression, for SFT an array of rows of 14 KB without images. Each command is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

from rl_data import generate

THINKING = "so it goes on " * 1000


def generate_sft(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for number in range(rows):
            answer = f"<think>{THINKING}</think><answer>4</answer>"
            messages = [
                {"role": "user", "content": f"{number} + 2?"},
                {"role": "assistant", "content": answer},
            ]
            file.write(("," if number else "[") + json.dumps({"messages": messages}))
        file.write("]")


def measure(name: str, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "deepeyes_plugins.cli", "data", *map(str, arguments)]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    print(
        f"{name:12} status {process.returncode}  {seconds:6.1f} s  "
        f"{usage.ru_maxrss * 1024 / 1e9:.2f} GB at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.3)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source, text, out = folder / "in" / "rl.parquet", folder / "sft.json", folder / "out"
        source.parent.mkdir()
        # In a process that ends: what this one holds would count as its children's memory.
        generation = get_context("spawn").Process(target=generate, args=(source, options.gigabytes))
        generation.start()
        generation.join()
        generate_sft(text, options.rows)
        sizes = source.stat().st_size / 1e9, text.stat().st_size / 1e6
        print("{:.1f} GB of parquet, {:.0f} MB of JSON".format(*sizes))
        measure("prepare rl", "prepare", "rl", source, "-o", out)
        measure("prompt", "prompt", source)
        measure("split", "split", out / source.name, "-o", folder / "split", "--validation", "0.02")
        measure("prepare sft", "prepare", "sft", text, "-o", folder / "sft")


if __name__ == "__main__":
    main()
