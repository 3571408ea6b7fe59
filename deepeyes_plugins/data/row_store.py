"""Checked rows of parquet files, any of which is at hand at once.

A parquet file is made to be read from front to back, training reads it shuffled. So the pass that
checks a file also writes its rows in Arrow's own format, a few to a batch: there a row is found
without reading others, is mapped into memory rather than loaded, and a file or row group of any
size takes no more memory than a few rows. Both results are kept: a restart finds them.
"""

from __future__ import annotations

import hashlib
import json
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

from deepeyes_plugins import __version__
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.files import parquet_schema, runs_of_row_groups
from deepeyes_plugins.data.findings import DataError, Report
from deepeyes_plugins.data.media import is_inline
from deepeyes_plugins.data.message_parts import image_source
from deepeyes_plugins.data.rl_checks import RowRules, check_rl_parquet
from deepeyes_plugins.data.rl_rows import image_from, plain_row
from deepeyes_plugins.data.workers import Workers, alone, processes_worth
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.protocol.content import ImageError
from deepeyes_plugins.rewards.hooks import rewards

IMAGE_SIZES = "deepeyes_image_sizes"
"""Column with the width and height of each image; ``None`` where one cannot be read."""

_LAYOUT = 2
_CONTENTS = "contents.json"
_PROMPT = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
_IMAGES = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of rows.

    Attributes:
        name: Of the file, in the folder of its store.
        batches: Rows in each of its batches.
    """

    name: str
    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A parquet file that has been checked and stored.

    Attributes:
        folder: Where its shards are.
        root: Folder that image paths are relative to.
        columns: Of the parquet file.
        shards: In the order of the rows.
        report: What the check found.
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
    """Check and store parquet files, those that have not been yet.

    Args:
        paths: The files.
        cache: Folder for the stores; takes as much space as the files. What is in it may be
            deleted whenever no run uses it.
        rules: What the rows are checked against.
        processes: That share the work; by default as many as there are processors, for little
            data one.
        keep_bad: Whether a store with bad rows stays. Otherwise only its report is of use, and the
            file is checked again next time: what was wrong may have been outside of it.

    Raises:
        DataError: A shard cannot be written, or a process of the check was killed.
        OSError: A file is gone, or the cache cannot be made.
    """
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
    """Name all that a result depends on; image files that rows name by path are not in it."""
    stat = path.stat()
    facts = {
        "file": [str(path.absolute()), stat.st_size, stat.st_mtime_ns],
        "rules": asdict(rules),
        "names": [sorted(environments()), sorted(rewards())],
        "version": [_LAYOUT, __version__],
    }
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]


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
        folder.mkdir()
        spans[path] = _spans(path, folder)
        size = path.stat().st_size / 1e9
        logger.info("checking %s (%.1f GB), kept in %s", path, size, stores[path])
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
    """Keep what goes wrong with a shard apart from what is wrong with the file that is read."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{target.parent} cannot be written: {error.strerror or error}. It needs about the "
            "space of the data files; data.cache_dir chooses another place"
        ) from error


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Replace dictionary columns: a file holds one dictionary per column, row groups have each."""
    for at, column in enumerate(batch.columns):
        if pa.types.is_dictionary(column.type):
            batch = batch.set_column(at, batch.schema.names[at], column.dictionary_decode())
    return batch


def _with_columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Move images that stand within messages to the column of images; see :func:`plain_row`."""
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
    """Whether messages are lists of parts."""
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
    """One report of the spans of a file; what concerns the whole file is said once."""
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
    """Make the path of an image absolute; the check has seen to it that it stays in ``root``."""
    if isinstance(image, str):
        return image if is_inline(image) else str(root / image.removeprefix("file://"))
    if isinstance(image, dict) and not image.get("bytes") and image.get("path"):
        return {**image, "path": _placed(image["path"], root)}
    return image


class Rows(Sequence[dict[str, Any]]):
    """Rows of several stored files, as dictionaries with the same keys.

    It holds names of files and numbers of rows only: it is small when pickled, and each process
    maps the files anew.
    """

    def __init__(
        self,
        files: Sequence[StoredFile],
        absent: Mapping[str, Any] | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        """Line up the rows of ``files``.

        Args:
            files: In order.
            absent: Value of a column in files that lack it, if another one has it; ``None`` for
                columns that are not named here.
            indices: Rows to take, in that order; all by default.
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
        """Return a row, with exactly the keys :attr:`columns`; for a slice, the rows of it."""
        return self.select(self._indices[index]) if isinstance(index, slice) else self.read(index)

    def read(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Return some columns of a row; :data:`IMAGE_SIZES` is one. Paths of images are absolute.

        Raises:
            IndexError: There is no such row.
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
        """Return the rows at ``indices`` of these, in that order."""
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
