"""Writers of data files: JSON lines for SFT, parquet for RL."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from deepeyes_plugins.data.dataset_info import MEDIA_ROOTS_KEY
from deepeyes_plugins.data.files import ROWS_AT_A_TIME
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.output import whole_file, write_text
from deepeyes_plugins.files import read_json

_ROW_GROUP_BYTES = 64 << 20
_PAGE_ROWS = 16
"""Rows after which pyarrow checks the page size; its default 1,024 makes gigabyte pages."""


def register_dataset(
    info: Path,
    name: str,
    file: str,
    *,
    formatting: str = "deepeyes",
    media_roots: Iterable[Path] = (),
) -> None:
    """Add a data set to a ``dataset_info.json``, keeping its other entries.

    Args:
        info: The ``dataset_info.json``.
        name: Name of the data set.
        file: Its file, relative to the folder.
        formatting: LLaMA-Factory's converter for it.
        media_roots: Folders and zip files that its rows name images of.

    Raises:
        DataError: The existing file is invalid, or it cannot be written.
    """
    entries: Any = {}
    if info.exists():
        try:
            entries = read_json(info.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{info}: cannot be read: {error}; move it away") from error
        if not isinstance(entries, dict):
            raise DataError(f"{info}: not a JSON object of data sets; move it away")
    entry: dict[str, Any] = {
        "file_name": file,
        "formatting": formatting,
        "columns": {"messages": "messages", "images": "images"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }
    if roots := [str(root.absolute()) for root in media_roots]:
        entry[MEDIA_ROOTS_KEY] = roots
    if entries.get(name) != entry:
        entries[name] = entry
        write_text(info, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def row_writer(target: Path, schema: pa.Schema | None) -> Iterator[LineWriter | RowGroupWriter]:
    """Write rows atomically: parquet with a schema, JSON lines without.

    Raises:
        DataError: It cannot be written.
    """
    with whole_file(target) as partial:
        if schema is None:
            with partial.open("wb") as file:
                yield LineWriter(file)
        else:
            with RowGroupWriter(partial, schema) as writer:
                yield writer


class LineWriter:
    """Writes rows as JSON lines; records the position of the first one with images."""

    def __init__(self, file: BinaryIO) -> None:
        """Write to an open file."""
        self._file = file
        self.first_image: tuple[int, int] | None = None
        self._offset = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        try:
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # A lone surrogate in a bad row.
            line = json.dumps(row).encode() + b"\n"
        if self.first_image is None and row.get("images"):
            self.first_image = self._offset, len(line)
        self._file.write(line)
        self._offset += len(line)


class RowGroupWriter:
    """Writes parquet in small row groups and pages, so that reading needs little memory."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Open the file."""
        self._schema = schema
        self._rows: list[Mapping[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []
        self.first_image = None
        self._writer = pq.ParquetWriter(
            path,
            schema,
            use_dictionary=False,
            write_statistics=False,
            write_batch_size=_PAGE_ROWS,
        )

    def __enter__(self) -> RowGroupWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._gather()
                self._flush()
        finally:
            self._writer.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one row.

        Raises:
            RowError: It does not fit the schema.
        """
        self._rows.append(row)
        if len(self._rows) >= ROWS_AT_A_TIME:
            self._gather()
            if sum(batch.nbytes for batch in self._batches) >= _ROW_GROUP_BYTES:
                self._flush()

    def _gather(self) -> None:
        if self._rows:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, self._schema))
            self._rows = []

    def _flush(self) -> None:
        if self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches, self._schema))
            self._batches = []
