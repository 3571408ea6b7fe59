"""Writing files beside the hot path, and what a disk that is full or slow costs."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from deepeyes_plugins.files import append_line
from deepeyes_plugins.rollout import EndReason, Trajectory
from deepeyes_plugins.rollout.log import BackgroundWriter, TrajectoryLog, read_log


def trajectory(name: str) -> Trajectory:
    return Trajectory(task_id=name, end_reason=EndReason.ANSWER)


class SlowDisk:
    """Lets no write end before it is told to."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.started = threading.Event()
        self.seen: list[str] = []

    def write(self, name: str) -> None:
        self.started.set()
        assert self.released.wait(10)
        self.seen.append(name)


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_writes_keep_their_order_and_nobody_waits_for_them() -> None:
    disk, writer = SlowDisk(), BackgroundWriter("notes")
    for name in "abc":
        assert writer.submit(partial(disk.write, name))
    assert disk.seen == []

    disk.released.set()
    assert writer.flush(10)
    assert disk.seen == ["a", "b", "c"]
    assert (writer.written, writer.dropped, writer.failed) == (3, 0, 0)


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [({"largest_count": 2}, (0, 0, 0, 0, 0)), ({"largest_bytes": 30}, (10, 10, 10, 10, 1))],
    ids=["count", "bytes"],
)
def test_a_disk_that_is_too_slow_costs_writes_and_one_warning(
    limits: dict[str, int], sizes: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    disk, writer = SlowDisk(), BackgroundWriter("notes", **limits)
    writer.submit(partial(disk.write, "0"), sizes[0])
    assert disk.started.wait(10)
    taken = [
        writer.submit(partial(disk.write, str(number)), size)
        for number, size in enumerate(sizes[1:], 1)
    ]

    assert taken == [True, True, False, False]
    assert writer.dropped == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "too slow for the notes" in caplog.text
    disk.released.set()
    assert writer.flush(10)
    assert disk.seen == ["0", "1", "2"]
    assert writer.submit(lambda: None)


def test_one_write_larger_than_the_bound_is_taken_when_nothing_waits() -> None:
    writer = BackgroundWriter("notes", largest_bytes=10)
    assert writer.submit(lambda: None, size=1000)


def test_a_write_that_fails_is_counted_and_the_next_ones_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer = BackgroundWriter("notes")

    def fail() -> None:
        raise OSError("no space")

    with caplog.at_level(logging.WARNING):
        for write in (fail, fail, lambda: None):
            writer.submit(write)
        assert writer.flush(10)
    assert (writer.written, writer.failed) == (1, 2)
    assert [record.message for record in caplog.records] == [
        "the notes cannot be written: no space"
    ]


def test_what_waits_when_the_process_ends_is_still_written(tmp_path: Path) -> None:
    program = f"""
import time
from deepeyes_plugins.files import append_line
from deepeyes_plugins.rollout.log import BackgroundWriter
from pathlib import Path
writer = BackgroundWriter("notes")
for number in range(50):
    writer.submit(lambda: append_line(Path({str(tmp_path / "notes")!r}), b"note"))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert (tmp_path / "notes").read_text().splitlines() == ["note"] * 50


def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path) -> None:
    log = TrajectoryLog(tmp_path)
    log.write(trajectory("a"))
    with files_end_at(log.path.stat().st_size + 20), pytest.raises(OSError, match="large"):
        log.write(trajectory("b"))
    log.write(trajectory("c"))

    assert [entry.task_id for entry in read_log(tmp_path)] == ["a", "c"]


def test_a_line_torn_by_a_killed_writer_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    torn = "x" * 200_000
    path.write_text(f"whole\n{torn}")
    append_line(path, b"next")
    assert path.read_text() == "whole\nnext\n"

    path.write_text(torn)
    append_line(path, b"first")
    assert path.read_text() == "first\n"
