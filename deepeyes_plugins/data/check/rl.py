"""Checks of RL rows and their images, before training starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from deepeyes_plugins.data import rl_rows
from deepeyes_plugins.data.check.images import ImageInfo, aspect_ratio_findings, inspect_image
from deepeyes_plugins.data.check.rows import check_rows
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.files import parquet_rows
from deepeyes_plugins.data.findings import Finding, Report
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.plugins import UnknownNameError
from deepeyes_plugins.rewards.hooks import rewards

COLUMNS = ("prompt", "data_source", "reward_model")
"""Required columns."""


@dataclass(frozen=True, slots=True)
class RowRules:
    """Settings that RL rows are checked against.

    Attributes:
        environment: Environment of files without ``env_name``.
        sources: Reward for a ``data_source`` that has none of its own name.
        media_root: Folder that image paths are relative to; ``None`` for the file's folder.
    """

    environment: str = "deepeyes_v2"
    sources: Mapping[str, str] = field(default_factory=dict)
    media_root: Path | None = None

    def root_of(self, path: Path) -> Path:
        """Return the folder that image paths of a file are relative to."""
        return (path.parent if self.media_root is None else self.media_root).absolute()


def check_rl_parquet(
    path: str | Path,
    rules: RowRules | None = None,
    *,
    limit: int | None = None,
    row_groups: range | None = None,
    first_row: int = 1,
    threads: int | None = None,
    keep: Callable[[pa.RecordBatch], None] | None = None,
) -> Report:
    """Check a parquet file of RL data.

    Args:
        path: The file.
        rules: Settings that rows are checked against.
        limit: Maximum number of rows.
        row_groups: Row groups to check; all by default.
        first_row: Number of their first row.
        threads: Threads for decoding images; by default one per processor, at most eight.
        keep: Called with every batch of rows as it was read.
    """
    path = Path(path)
    rules = rules or RowRules()
    rows = islice(parquet_rows(path, COLUMNS, row_groups, first_row, keep), limit)
    find = partial(rl_findings, rules=rules, media_root=rules.root_of(path))
    return check_rows(path, rows, find, threads)


def rl_findings(
    row: Mapping[str, Any], *, rules: RowRules, media_root: Path | None = None
) -> Iterator[Finding]:
    """Yield the problems of an RL row; its images are decoded."""
    try:
        row = rl_rows.plain_row(row)
    except RowError as error:
        yield Finding(str(error), "prompt")
        return
    seen = inspect_images(row, media_root)
    yield from shape_findings(seen)
    images = None if any(isinstance(one, Finding) for one in seen) else seen
    yield from column_findings(row, images, rules)


def inspect_images(
    row: Mapping[str, Any], media_root: Path | None = None, *, decode: bool = True
) -> list[ImageInfo | Finding]:
    """Read the images of a row."""
    images = row.get("images")
    return [
        inspect_image(number, image, media_root, decode=decode)
        for number, image in enumerate(images if isinstance(images, list) else [], 1)
    ]


def shape_findings(seen: Sequence[ImageInfo | Finding]) -> Iterator[Finding]:
    """Yield unreadable images or, if all are readable, those that processors reject."""
    broken = [one for one in seen if isinstance(one, Finding)]
    yield from broken
    for number, one in enumerate([] if broken else seen, 1):
        if isinstance(one, ImageInfo):
            yield from aspect_ratio_findings(number, one.size)


def column_findings(
    row: Mapping[str, Any], seen: Sequence[ImageInfo | Finding] | None, rules: RowRules
) -> Iterator[Finding]:
    """Yield the problems of a row's columns.

    Args:
        row: The row.
        seen: Its images; ``None`` if one is unreadable, and the prompt is not checked.
        rules: Settings that it is checked against.
    """
    readers: dict[str, Callable[[Mapping[str, Any]], object]] = {
        "data_source": rl_rows.data_source,
        "reward_model": rl_rows.ground_truth,
        "extra_info": rl_rows.metadata,
    }
    if seen is not None:
        readers["prompt"] = rl_rows.prompt_messages
        row = with_images(row, seen)
    for key, read in readers.items():
        try:
            read(row)
        except RowError as error:
            yield Finding(str(error), key)
    stale = row.get("env_name")
    if current := rl_rows.STALE_ENVIRONMENTS.get(str(stale)):
        yield Finding(f"{stale!r} is an old name, read as {current!r}", "env_name", "warning")
    name = rl_rows.environment_name(row, rules.environment)
    try:
        environments().require(name)
    except UnknownNameError as error:
        yield Finding(str(error), "env_name")
    source = row.get("data_source")
    if source and isinstance(source, str):
        try:
            rewards().require(rules.sources.get(source, source))
        except UnknownNameError as error:
            hint = "Name the one to use under rewards.sources in agent.yaml."
            yield Finding(f"{error} {hint}", "data_source")


def with_images(row: Mapping[str, Any], seen: Sequence[ImageInfo | Finding]) -> Mapping[str, Any]:
    """Return the row with images already read, so that no file is read twice."""
    if not isinstance(row.get("images"), list):
        return row
    return {**row, "images": [one.image for one in seen if isinstance(one, ImageInfo)]}
