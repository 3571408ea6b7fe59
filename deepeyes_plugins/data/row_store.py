"""Random access to checked rows of parquet files.

Parquet is made for sequential reading, but training shuffles. So the check also writes the rows in
Arrow's IPC format in small batches: any row is memory-mapped without reading others, and a file or
row group of any size takes the memory of a few rows. Check and rows are cached for restarts.
"""

from __future__ import annotations

import logging
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from deepeyes_plugins.data.check.rl import RowRules, check_rl_parquet
from deepeyes_plugins.data.content_hash import file_fingerprint
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.files import parquet_schema, runs_of_row_groups
from deepeyes_plugins.data.findings import DataError, Report
from deepeyes_plugins.data.images import image_from
from deepeyes_plugins.data.media import is_inline, named_roots
from deepeyes_plugins.data.message_parts import image_source
from deepeyes_plugins.data.rl_rows import plain_row
from deepeyes_plugins.data.workers import Workers, alone, processes_worth
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.files import owner_only_folder
from deepeyes_plugins.protocol.content import ImageError
from deepeyes_plugins.rewards.hooks import rewards

IMAGE_SIZES = "deepeyes_image_sizes"
"""Column with the width and height of each image; ``None`` if it cannot be read."""

_LAYOUT = 2
_CONTENTS = "contents.json"
_PROMPT = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
_IMAGES = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of rows.

    Attributes:
        name: File name in the folder of its store.
        batches: Number of rows of each batch.
    """

    name: str
    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A parquet file that has been checked and stored.

    Attributes:
        folder: Folder of its shards.
        root: Folder that image paths are relative to.
        columns: Columns of the parquet file.
        shards: Shards in row order.
        report: Result of the check.
    """

    folder: Path
    root: Path
    columns: tuple[str, ...]
    shards: tuple[Shard, ...]
    report: Report


_STORED = TypeAdapter(StoredFile)


def store_files(
    paths: Sequence[Path],
    cache: Path,
    rules: RowRules,
    *,
    processes: int | None = None,
    keep_bad: bool = False,
) -> list[StoredFile]:
    """Check and store parquet files that are not in the cache.

    Args:
        paths: The files.
        cache: Folder for the stores; takes as much space as the files. It may be deleted while no
            run uses it.
        rules: Settings that rows are checked against.
        processes: Number of processes; by default one per processor, or one for little data.
        keep_bad: Whether to cache a store with bad rows. Otherwise the file is checked again next
            time, since the cause may be outside of it.

    Raises:
        DataError: A shard cannot be written, or a process of the check was killed.
        OSError: A file is gone, or the cache cannot be created.
    """
    owner_only_folder(cache)
    with ExitStack() as stack:
        stores = {path: cache / f"{path.stem}-{_fingerprint(path, rules)}" for path in paths}
        for folder in sorted(set(stores.values())):
            stack.enter_context(alone(folder))
        missing = {path: folder for path, folder in stores.items() if not folder.exists()}
        if missing:
            _store(missing, rules, processes or processes_worth(missing))
        found = [_STORED.validate_json((stores[path] / _CONTENTS).read_bytes()) for path in paths]
        for stored in found:
            if not stored.report.ok and not keep_bad:
                shutil.rmtree(stored.folder, ignore_errors=True)
    return found


def _fingerprint(path: Path, rules: RowRules) -> str:
    """Return a fingerprint of all inputs of the result, except image files."""
    names = [sorted(environments()), sorted(rewards())]
    return file_fingerprint(path, _LAYOUT, asdict(rules), *named_roots(), names)


@dataclass(frozen=True, slots=True)
class _Span:
    """Row groups of a file that become one shard."""

    path: Path
    row_groups: range
    first_row: int
    target: Path


def _store(stores: Mapping[Path, Path], rules: RowRules, processes: int) -> None:
    partial = {path: folder.with_name(f"{folder.name}.partial") for path, folder in stores.items()}
    spans: dict[Path, list[_Span]] = {}
    for path, folder in partial.items():
        shutil.rmtree(folder, ignore_errors=True)
        owner_only_folder(folder)
        spans[path] = _spans(path, folder)
        size = path.stat().st_size / 1e9
        logger.info("checking %s (%.1f GB), cached in %s", path, size, stores[path])
    processes = min(processes, sum(map(len, spans.values())))
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    with ExitStack() as stack:
        for folder in partial.values():
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        workers = stack.enter_context(Workers(processes))
        results = {
            path: [workers.submit(_store_span, span, rules, threads) for span in spans[path]]
            for path in spans
        }
        for path in spans:
            done = [future.result() for future in results[path]]
            report = _joined(path, [report for _, report in done])
            shards = tuple(shard for shard, _ in done)
            stored = StoredFile(stores[path], rules.root_of(path), _columns(path), shards, report)
            (partial[path] / _CONTENTS).write_bytes(_STORED.dump_json(stored))
            owner_only_folder(partial[path], contents=True)
            partial[path].rename(stores[path])
            logger.info("checked %s: %d rows, %d bad", path, report.rows, report.bad_rows)


def _spans(path: Path, folder: Path) -> list[_Span]:
    return [
        _Span(path, groups, first_row, folder / f"{groups.start}.arrow")
        for groups, first_row in runs_of_row_groups(path)
    ]


def _store_span(span: _Span, rules: RowRules, threads: int) -> tuple[Shard, Report]:
    """Check the rows of a span and write them."""
    root = rules.root_of(span.path)
    counts: list[int] = []
    with _writing(span.target), ExitStack() as stack:
        writer: list[pa.RecordBatchFileWriter] = []

        def keep(batch: pa.RecordBatch) -> None:
            batch = _with_sizes(_with_columns(_plain(batch)), root)
            with _writing(span.target):
                if not writer:
                    sink = stack.enter_context(pa.OSFile(str(span.target), "wb"))
                    writer.append(stack.enter_context(pa.ipc.new_file(sink, batch.schema)))
                writer[0].write_batch(batch)
            counts.append(batch.num_rows)

        report = check_rl_parquet(
            span.path,
            rules,
            row_groups=span.row_groups,
            first_row=span.first_row,
            threads=threads,
            keep=keep,
        )
    return Shard(span.target.name, tuple(counts)), report


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turn a failed write of a shard into an error that says what to do.

    Raises:
        DataError: The shard cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{target.parent} cannot be written: {error.strerror or error}. It needs about as much "
            "space as the data files; set data.cache_dir to another folder"
        ) from error


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Decode dictionary columns: an Arrow file has one dictionary per column, parquet several."""
    for at, column in enumerate(batch.columns):
        if pa.types.is_dictionary(column.type):
            batch = batch.set_column(at, batch.schema.names[at], column.dictionary_decode())
    return batch


def _with_columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Move images within messages to the column ``images``; see :func:`plain_row`."""
    if not _has_parts(batch.schema):
        return batch
    rows: list[Mapping[str, Any]] = []
    for row in batch.to_pylist():
        try:
            rows.append(plain_row(row))
        except RowError:  # The check names the row.
            rows.append({"prompt": [], "images": []})
    prompts = [
        [{"role": one["role"], "content": one["content"]} for one in row["prompt"] or ()]
        for row in rows
    ]
    images = [list(map(_entry, row.get("images") or ())) for row in rows]
    for name, values, kind in (("prompt", prompts, _PROMPT), ("images", images, _IMAGES)):
        column, at = pa.array(values, kind), batch.schema.get_field_index(name)
        batch = batch.append_column(name, column) if at < 0 else batch.set_column(at, name, column)
    return batch


def _entry(image: Any) -> dict[str, Any]:
    source = image_source(image)
    return {
        "bytes": source if isinstance(source, bytes) else None,
        "path": source if isinstance(source, str) else None,
    }


def _has_parts(schema: pa.Schema) -> bool:
    """Return whether messages are lists of parts."""
    if "prompt" not in schema.names or not pa.types.is_list(kind := schema.field("prompt").type):
        return False
    message = kind.value_type
    if not pa.types.is_struct(message) or not {"role", "content"} <= {one.name for one in message}:
        return False
    content = message.field("content").type
    return pa.types.is_list(content) or pa.types.is_large_list(content)


def _with_sizes(batch: pa.RecordBatch, root: Path) -> pa.RecordBatch:
    names = batch.schema.names
    rows = batch.column("images").to_pylist() if "images" in names else [None] * batch.num_rows
    sizes = pa.array([_sizes(row, root) for row in rows], pa.list_(pa.list_(pa.int32())))
    return batch.append_column(IMAGE_SIZES, sizes)


def _sizes(images: Any, root: Path) -> list[tuple[int, int] | None]:
    sizes: list[tuple[int, int] | None] = []
    for image in images if isinstance(images, list) else []:
        try:
            sizes.append(image_from(image, root).size)
        except (RowError, ImageError):
            sizes.append(None)
    return sizes


def _joined(path: Path, reports: Sequence[Report]) -> Report:
    """Join the reports of a file's spans, without repeated findings about the file."""
    report = Report(path, sum(part.rows for part in reports))
    known = set()
    for part in reports:
        for problem in part.problems:
            if problem.row is not None or problem not in known:
                report.problems.append(problem)
                known.add(problem)
    return report


def _columns(path: Path) -> tuple[str, ...]:
    try:
        schema = parquet_schema(path)
    except DataError:
        return ()
    more = ("images",) if _has_parts(schema) else ()
    return tuple(dict.fromkeys([*schema.names, *more]))


def _placed(image: Any, root: Path) -> Any:
    """Make the path of an image absolute; the check has ensured that it is inside ``root``."""
    if isinstance(image, str):
        return image if is_inline(image) else str(root / image.removeprefix("file://"))
    if isinstance(image, dict) and not image.get("bytes") and image.get("path"):
        return {**image, "path": _placed(image["path"], root)}
    return image


class Rows(Sequence[dict[str, Any]]):
    """Rows of several stored files, as dictionaries with the same keys.

    It holds only file names and row counts: it is small when pickled, and each process maps the
    files itself.
    """

    def __init__(
        self,
        files: Sequence[StoredFile],
        absent: Mapping[str, Any] | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        """Concatenate the rows of ``files``.

        Args:
            files: Files in order.
            absent: Values of columns that some files lack; ``None`` for other columns.
            indices: Rows to select, in order; all by default.
        """
        self._files = tuple(files)
        self._absent = dict(absent or {})
        self.columns = tuple(dict.fromkeys(name for file in files for name in file.columns))
        batches = [
            (number, shard.name, at, count)
            for number, file in enumerate(files)
            for shard in file.shards
            for at, count in enumerate(shard.batches)
        ]
        self._batches = [entry[:3] for entry in batches]
        self._ends = list(accumulate(entry[3] for entry in batches))
        total = self._ends[-1] if self._ends else 0
        self._indices: Sequence[int] = range(total) if indices is None else indices
        self._readers: dict[tuple[int, str], pa.RecordBatchFileReader] = {}

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        """Return a row with exactly the keys :attr:`columns`, or the rows of a slice."""
        return self.select(self._indices[index]) if isinstance(index, slice) else self.read(index)

    def read(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Return some columns of a row, such as :data:`IMAGE_SIZES`; image paths are absolute.

        Raises:
            IndexError: The index is out of range.
        """
        position = self._indices[index]
        at = bisect_right(self._ends, position)
        file, shard, number = self._batches[at]
        batch = self._reader(file, shard).get_batch(number)
        offset = position - (self._ends[at] - batch.num_rows)
        present = set(batch.schema.names)
        row = {
            name: batch.column(name)[offset].as_py() if name in present else self._absent.get(name)
            for name in columns or self.columns
        }
        if images := row.get("images"):
            row["images"] = [_placed(image, self._files[file].root) for image in images]
        return row

    def select(self, indices: Sequence[int]) -> Rows:
        """Return the rows at ``indices``, in order."""
        chosen = [self._indices[index] for index in indices]
        return Rows(self._files, self._absent, chosen)

    def _reader(self, file: int, shard: str) -> pa.RecordBatchFileReader:
        key = file, shard
        if key not in self._readers:
            source = pa.memory_map(str(self._files[file].folder / shard))
            self._readers[key] = pa.ipc.open_file(source)
        return self._readers[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}
