"""Caches, recordings and logs are for their owner only, also when they exist already."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from deepeyes_plugins.data.check.rl import RowRules
from deepeyes_plugins.data.row_store import store_files
from deepeyes_plugins.files import owner_only, owner_only_folder
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.rollout.log import TrajectoryLog
from deepeyes_plugins.rollout.trajectory import EndReason, Trajectory
from deepeyes_plugins.search.image_cache import ImageCacheWriter
from deepeyes_plugins.search.recording import Recording
from deepeyes_plugins.sqlite_file import SqliteFile
from tests.data.test_checks import image_bytes, rl_row, write_parquet

IMAGE = EncodedImage(image_bytes())


async def sqlite(folder: Path) -> None:
    database = SqliteFile(folder / "cache.sqlite", "CREATE TABLE IF NOT EXISTS facts (name TEXT);")
    await database.run(lambda connection: connection.execute("INSERT INTO facts VALUES ('x')"))
    assert modes(folder)["cache.sqlite-wal"] == 0o600
    await database.aclose()


async def recording(folder: Path) -> None:
    Recording(folder / "web.jsonl", writable=True).close()


async def image_cache(folder: Path) -> None:
    with ImageCacheWriter(folder / "images.sqlite"):
        pass


async def trajectories(folder: Path) -> None:
    image = IMAGE
    TrajectoryLog(folder).write(
        Trajectory(task_id="1", data_source="x", end_reason=EndReason.ANSWER), [image]
    )


async def rows(folder: Path) -> None:
    file = write_parquet(folder.parent / "x.parquet", [rl_row()])
    store_files([file], folder, RowRules(), processes=1)


def modes(folder: Path) -> dict[str, int]:
    """The permissions of a folder and of everything in it."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in (folder, *folder.rglob("*"))
        if path.suffix != ".lock"
    }


@pytest.mark.parametrize("write", [sqlite, recording, image_cache, trajectories, rows])
async def test_nobody_else_can_read_what_is_stored(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    folder = tmp_path / "stored"
    for _ in range(2):
        await write(folder)  # type: ignore[misc]
        found = modes(folder)
        assert len(found) > 1
        for name, mode in found.items():
            assert mode == (0o700 if (folder / name).is_dir() else 0o600), name
        if write is rows:
            break  # A store that exists is only read.
        for path in folder.rglob("*"):
            path.chmod(0o777 if path.is_dir() else 0o666)
        folder.chmod(0o777)


def test_shared_folders_and_the_current_one_keep_their_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, here = tmp_path / "shared", tmp_path / "project" / "runs"
    for folder, mode in ((shared, 0o1777), (here, 0o755)):
        folder.mkdir(parents=True)
        folder.chmod(mode)
    monkeypatch.chdir(here)
    for folder, mode in ((shared, 0o1777), (here, 0o755), (here.parent, 0o755)):
        owner_only_folder(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == mode
    owner_only(here / "log")
    assert stat.S_IMODE((here / "log").stat().st_mode) == 0o600
