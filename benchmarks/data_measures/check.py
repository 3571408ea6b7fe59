"""`deepeyes data check` on an RL parquet file against a bare loop that only decodes its images.

Both decode every JPEG at its full size. The bare loop reads the same file, in as many processes,
with the fastest of the decoders that are installed; the check has Pillow, as training does. The
photos are noise with the spectrum of natural images, each with a comment of its own.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from reporting.measures import Figure

from deepeyes_plugins.data.files import row_batches

BENCHMARKS = Path(__file__).parents[1]
PROCESSES = 2
SIZES = ((640, 480), (1024, 768), (1280, 853), (1600, 1200))
ROWS_A_GROUP = 200
SCHEMA = pa.schema(
    {
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "images": pa.list_(pa.struct({"bytes": pa.binary()})),
        "data_source": pa.string(),
        "env_name": pa.string(),
        "reward_model": pa.struct({"ground_truth": pa.string()}),
    }
)


def photo(width: int, height: int, generator: np.random.Generator) -> bytes:
    """Make a JPEG with the spectrum of natural images."""
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = np.maximum(np.hypot(across, down), 1 / width) ** -1.2
    channels = []
    for strength in (50, 18, 18):
        wave = fall * np.exp(2j * np.pi * generator.random(fall.shape))
        values = np.fft.irfft2(wave, s=(height, width))
        channels.append(values / values.std() * strength + 128)
    bands = [Image.fromarray(one.clip(0, 255).astype(np.uint8)) for one in channels]
    buffer = io.BytesIO()
    Image.merge("YCbCr", bands).convert("RGB").save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def generate(path: Path, size: int) -> None:
    """Write a file of about `size` bytes."""
    generator = np.random.default_rng(0)
    photos = [photo(*SIZES[at % len(SIZES)], generator) for at in range(24)]
    written = index = 0
    with pq.ParquetWriter(path, SCHEMA) as writer:
        while written < size:
            rows: list[dict[str, Any]] = []
            for _ in range(ROWS_A_GROUP):
                data = photos[index % len(photos)]
                comment = b"\xff\xfe\x00\x0a" + f"{index:08d}".encode()
                data = data[:2] + comment + data[2:]
                rows.append(
                    {
                        "prompt": [{"role": "user", "content": f"<image>What is shown, {index}?"}],
                        "images": [{"bytes": data}],
                        "data_source": "perception",
                        "env_name": "deepeyes_v2",
                        "reward_model": {"ground_truth": "A"},
                    }
                )
                written, index = written + len(data), index + 1
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))


def decoders() -> dict[str, Callable[[bytes], object]]:
    """Return the installed JPEG decoders."""

    def pillow(data: bytes) -> object:
        return Image.open(io.BytesIO(data)).load()

    found: dict[str, Callable[[bytes], object]] = {"pillow": pillow}
    try:
        import simplejpeg

        found["simplejpeg"] = simplejpeg.decode_jpeg
    except ImportError:
        pass
    try:
        import cv2

        cv2.setNumThreads(1)
        found["opencv"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), 1)
    except ImportError:
        pass
    return found


def bare(path: str, decoder: str, at: int) -> None:
    """Decode the images of every second row group."""
    decode = decoders()[decoder]
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(at, file.num_row_groups, PROCESSES):
            for batch in row_batches(file, range(group, group + 1)):
                images = batch.column("images").flatten().field("bytes")
                for image in images:
                    decode(image.as_py())


def timed(commands: list[list[str]]) -> tuple[float, float]:
    """Return the time in seconds of concurrent commands, and their peak resident memory in MB."""
    started = time.perf_counter()
    running = [
        psutil.Popen(command, stdout=subprocess.DEVNULL, cwd=BENCHMARKS) for command in commands
    ]
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            try:
                every = [each for one in running for each in (one, *one.children(recursive=True))]
                peak[0] = max(peak[0], sum(each.memory_info().rss for each in every))
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    codes = [one.wait() for one in running]
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    if any(codes):
        raise RuntimeError(f"{commands[0]} ended with {codes}")
    return seconds, peak[0] / 1e6


def measure(quick: bool) -> Figure:
    """Measure the throughput of the check relative to the fastest decoding loop."""
    size = (96 << 20) if quick else (4 << 30)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photos.parquet"
        generate(path, size)
        details: dict[str, float] = {"gigabytes": path.stat().st_size / 1e9}
        for name in decoders():
            call = "import sys; from data_measures.check import bare; bare(*{!r})"
            commands = [
                [sys.executable, "-c", call.format((str(path), name, at))]
                for at in range(PROCESSES)
            ]
            details[f"{name} alone [s]"], _ = timed(commands)
        command = [sys.executable, "-m", "deepeyes_plugins.cli", "data", "check", str(path)]
        command += ["--json", "--processes", str(PROCESSES), "--state", str(Path(folder) / "s")]
        details["check [s]"], details["memory of all processes [MB]"] = timed([command])
    best = min(value for name, value in details.items() if name.endswith("alone [s]"))
    return Figure(
        "data check, times the speed of the fastest loop that only decodes",
        best / details["check [s]"],
        "x",
        0.8,
        details,
    )
