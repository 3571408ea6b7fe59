"""The trajectory log."""

from __future__ import annotations

import logging
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.rollout import EndReason, Trajectory, TurnRecord
from deepeyes_plugins.rollout.log import TrajectoryLog, read_log
from tests.vlmevalkit.conftest import png


def trajectory(name: str, text: str = "") -> Trajectory:
    turn = TurnRecord(text=text)
    return Trajectory(task_id=name, turns=[turn], end_reason=EndReason.ANSWER)


def write_many(folder: Path, prefix: str) -> None:
    log = TrajectoryLog(folder)
    with ThreadPoolExecutor(4) as threads:
        for number in range(20):
            threads.submit(log.append, trajectory(f"{prefix}{number}", "long " * 50_000))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    image = EncodedImage(png("red"))
    log = TrajectoryLog(tmp_path / "new")
    log.append(trajectory("a", "line\nbreak \u2028"), [image, image])
    log.append(trajectory("b"))

    assert [entry.task_id for entry in read_log(tmp_path / "new")] == ["a", "b"]
    assert [path.name for path in (tmp_path / "new" / "images").iterdir()] == [
        f"{image.sha256}.png"
    ]


def test_threads_and_processes_share_a_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_many, args=(tmp_path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    names = {entry.task_id for entry in read_log(tmp_path)}
    assert names == {f"{prefix}{number}" for prefix in "ab" for number in range(20)}


def test_a_log_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    log = TrajectoryLog(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        log.append(trajectory("a"))
        log.append(trajectory("b"))

    assert len(caplog.records) == 1
    assert "cannot be logged" in caplog.text


def test_text_that_is_not_unicode_costs_nothing(tmp_path: Path) -> None:
    log = TrajectoryLog(tmp_path)
    log.append(trajectory("a", "printed \ud800"))

    (entry,) = read_log(tmp_path)
    assert entry.turns[0].text.startswith("printed ")


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    TrajectoryLog(tmp_path).append(trajectory("a"))
    with (tmp_path / "trajectories.jsonl").open("a") as file:
        file.write("{\n")

    entries = read_log(tmp_path)
    assert next(entries).task_id == "a"
    with pytest.raises(ValueError, match=r"trajectories\.jsonl:2 is not a trajectory"):
        next(entries)
