"""Inputs of a command: data files and the folders and zip files of their images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deepeyes_plugins.data.dataset_info import media_roots
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.media import MediaPlaces
from deepeyes_plugins.data.output import refuse_inputs

NO_ROWS_IN = ("dataset_info.json", "dataset_infos.json")
"""JSON files that hold no rows: LLaMA-Factory's and Hugging Face's data set lists."""

Progress = Callable[[str, int, int | None], None]
"""Called with file, number of rows done, and total rows if known."""


def no_progress(file: str, done: int, total: int | None) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Data files and the places of their images.

    Attributes:
        files: Data files in a fixed order.
        places: Where images are searched.
        inputs: All files and folders that are read.
    """

    files: tuple[Path, ...]
    places: MediaPlaces
    inputs: tuple[Path, ...]

    @classmethod
    def find(
        cls,
        paths: Sequence[Path],
        suffixes: Sequence[str],
        kind: str,
        media: Sequence[Path] = (),
        *,
        are_prepared: bool = False,
    ) -> Self:
        """Find the data files among files and in folders.

        Args:
            paths: Data files, folders of them, zip files of images.
            suffixes: Suffixes of data files.
            kind: Name of their kind, for messages.
            media: Folders and zip files with images; by default the folders of the data and zip
                files in them.
            are_prepared: Whether images are also searched where ``dataset_info.json`` says.

        Raises:
            DataError: There is no data file, a path is of another kind, or a media path is missing
                or cannot be read.
        """
        files = tuple(_data_files(paths, suffixes, kind))
        folders = [path for path in paths if path.is_dir()]
        archives = [path for path in paths if path.suffix == ".zip"]
        around = [*folders, *(file.parent for file in files), *archives]
        named = [root for file in files for root in media_roots(file) if root.exists()]
        places = MediaPlaces.open([*(media or dict.fromkeys(around)), *named * are_prepared])
        return cls(files, places, (*folders, *files, *archives, *media))

    def refuse(self, *outputs: Path) -> None:
        """Refuse to write into inputs.

        Raises:
            DataError: An output is an input, or inside an input folder.
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
