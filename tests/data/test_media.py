"""Image files in a folder or in a zip file that nobody unpacks."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from deepeyes_plugins.data import media
from deepeyes_plugins.data.check.sft import check_sft_file
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.media import MediaError, MediaPlaces, MediaRoot, read_media
from tests.data.test_checks import image_bytes, with_image, write


def zipped(path: Path, members: dict[str, bytes], method: int = ZIP_DEFLATED) -> Path:
    with ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_folder_first_then_its_zip_file_then_an_absolute_path_that_may_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "both.png").write_bytes(b"from the folder")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "1.png").write_bytes(b"from elsewhere")
    (folder / "link.png").symlink_to(elsewhere / "1.png")
    (folder / "same.png").symlink_to("both.png")
    zipped(folder / "images.zip", {"both.png": b"from the zip", "packed.png": b"from the zip"})
    other = zipped(elsewhere / "o.zip", {"1.png": b"from another zip"})

    root = MediaRoot.open(folder)

    for name, content in (
        ("both.png", b"from the folder"),
        ("packed.png", b"from the zip"),
        (str(folder / "both.png"), b"from the folder"),
        ("same.png", b"from the folder"),
        (f"zip://packed.png::{folder / 'images.zip'}", b"from the zip"),
    ):
        assert read_media(root.locate(name)) == content
    outside = [
        (str(elsewhere / "1.png"), b"from elsewhere"),
        ("link.png", b"from elsewhere"),
        (f"zip://1.png::{other}", b"from another zip"),
    ]
    for name, _ in outside:
        with pytest.raises(RowError, match=r"outside.*name its folder in media_root or DEEPEYES_M"):
            root.locate(name)
    with pytest.raises(RowError, match=r"outside .*a path with \.\. in it"):
        root.locate("../elsewhere/1.png")
    monkeypatch.setenv(media.MEDIA_ROOTS, f"{folder}:{elsewhere}")
    for name, content in outside:
        assert read_media(MediaRoot.open(folder).locate(name)) == content
        assert read_media(MediaPlaces.open([folder]).locate(name)) == content
    with pytest.raises(RowError, match=r"no such file in .*/media or .*/media/images\.zip"):
        root.locate("nowhere.png")


@pytest.mark.parametrize("packed", ["images/1.png", "1.png"])
@pytest.mark.parametrize("named", ["images/1.png", "1.png", "./images/1.png", "images\\1.png"])
def test_a_zip_file_may_hold_the_folder_of_its_name_or_not(
    tmp_path: Path, packed: str, named: str
) -> None:
    root = MediaRoot.open(zipped(tmp_path / "images.zip", {packed: b"it"}))

    assert read_media(root.locate(named)) == b"it"


def test_a_name_does_not_lead_out_of_a_zip_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    root = MediaRoot.open(zipped(tmp_path / "images.zip", {"1.png": b"it"}))

    with pytest.raises(RowError, match="no such file"):
        root.locate("../secret")


def test_what_is_no_media_root_says_so(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "whole.zip", {f"{number}.png": bytes(999) for number in range(9)})
    cut = tmp_path / "cut.zip"
    cut.write_bytes(whole.read_bytes()[:-100])

    with pytest.raises(MediaError, match=r"cut\.zip cannot be read .*, perhaps truncated"):
        MediaRoot.open(cut)
    with pytest.raises(MediaError, match="gone, the media root, is neither a folder nor a zip"):
        MediaRoot.open(tmp_path / "gone")


def test_bad_members_are_named_with_their_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "MAXIMUM_MEMBER_BYTES", 1 << 20)
    archive = zipped(
        tmp_path / "images.zip",
        {"good.png": image_bytes(), "bomb.png": bytes(2 << 20), "text.png": b"<html>"},
    )
    with ZipFile(archive, "a") as opened:
        opened.writestr("damaged.png", image_bytes())
        at = opened.infolist()[-1].header_offset + 60
    content = bytearray(archive.read_bytes())
    content[at : at + 20] = bytes(20)
    archive.write_bytes(content)
    names = ("good.png", "bomb.png", "text.png", "damaged.png", "gone.png")

    report = check_sft_file(write(tmp_path / "x.json", [*map(with_image, names)]), archive)

    problems = [str(problem).partition("x.json, ")[2] for problem in report.problems]
    beginnings = [
        f"row 2: images: image 1 (bomb.png): bomb.png of {archive} cannot be read: it would unpack",
        "row 3: images: image 1 (text.png): not a readable image",
        f"row 4: images: image 1 (damaged.png): damaged.png of {archive} cannot be read: ",
        f"row 5: images: image 1 (gone.png): there is no such file in {archive}",
    ]
    for problem, beginning in zip(problems, beginnings, strict=True):
        assert problem.startswith(beginning)


def _digits(names: list[str]) -> list[bytes]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(read_media, names))


def test_processes_and_threads_read_at_random(tmp_path: Path) -> None:
    """A forked worker inherits the open file, whose position it must not share."""
    members = {f"{number}.bin": os.urandom(50_000) for number in range(40)}
    root = MediaRoot.open(zipped(tmp_path / "images.zip", members))
    names = [root.locate(name) for name in members]
    read_media(names[0])

    with get_context("fork").Pool(3) as pool:
        found = pool.map(_digits, [names[::-1], names, names[1::2] + names[::2]])

    contents = list(members.values())
    assert found == [contents[::-1], contents, contents[1::2] + contents[::2]]


def test_each_of_many_zip_files_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    class Counted(ZipFile):
        def __init__(self, file: Path) -> None:
            opened.append(file)
            super().__init__(file)

    for number in range(12):
        zipped(tmp_path / f"{number}.zip", {f"{number}.png": b"it"})
    monkeypatch.setattr(media, "ZipFile", Counted)
    places = MediaPlaces.open([tmp_path])

    for name in [f"{number}.png" for number in range(12)] * 3:
        assert read_media(places.locate(name)) == b"it"
    assert len(opened) == 12


def test_a_zip_file_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    archive = tmp_path / "images.zip"
    name = MediaRoot.open(zipped(archive, {"1.png": b"old"})).locate("1.png")
    assert read_media(name) == b"old"

    archive.unlink()
    zipped(archive, {"1.png": b"newer"})

    assert read_media(name) == b"newer"
