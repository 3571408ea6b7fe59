"""What a command reads: data files, and the folders and zip files that their images are in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.media import MediaPlaces
from deepeyes_plugins.data.output import refuse_inputs

NO_ROWS_IN = ("dataset_info.json", "dataset_infos.json")
"""Names of JSON files beside data: of LLaMA-Factory's and Hugging Face's list of data sets."""

Progress = Callable[[str, int, int | None], None]
"""Told a file, how many of its rows are done, and of how many if that is known."""


def no_progress(file: str, done: int, total: int | None) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Data files and where their images are.

    Attributes:
        files: In a fixed order.
        places: Where images are looked for.
        inputs: All files and folders that are read.
    """

    files: tuple[Path, ...]
    places: MediaPlaces
    inputs: tuple[Path, ...]

    @classmethod
    def find(
        cls, paths: Sequence[Path], suffixes: Sequence[str], kind: str, media: Sequence[Path] = ()
    ) -> Self:
        """Find the data files among files and in folders.

        Args:
            paths: Data files, folders of such, zip files of images.
            suffixes: Of data files.
            kind: What they are, for people.
            media: Folders and zip files to look for images in; by default where the data are, with
                the zip files that lie there.

        Raises:
            DataError: There is no data file, a path is of another kind, or a place of images is
                missing or cannot be read.
        """
        files = tuple(_data_files(paths, suffixes, kind))
        folders = [path for path in paths if path.is_dir()]
        archives = [path for path in paths if path.suffix == ".zip"]
        around = [*folders, *(file.parent for file in files), *archives]
        places = MediaPlaces.open(media or dict.fromkeys(around))
        return cls(files, places, (*folders, *files, *archives, *media))

    def refuse(self, *outputs: Path) -> None:
        """Make sure that nothing is written where something is read.

        Raises:
            DataError: It would be.
        """
        refuse_inputs(outputs, self.inputs)


def _data_files(paths: Iterable[Path], suffixes: Sequence[str], kind: str) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(
                file
                for file in path.rglob("*")
                if file.suffix in suffixes
                and file.name not in NO_ROWS_IN
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
                and not file.is_dir()
            )
        elif path.suffix in suffixes:
            if not path.exists():
                raise DataError(f"{path}: there is no such file")
            files.append(path)
        elif path.suffix != ".zip":
            raise DataError(f"{path}: neither a folder nor a {kind} file")
    if not files:
        raise DataError(f"there is no {kind} file in {', '.join(map(str, paths))}")
    return list(dict.fromkeys(files))
