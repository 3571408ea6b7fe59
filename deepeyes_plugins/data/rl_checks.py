"""Check files for reinforcement learning before any GPU is taken: every row, every image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from deepeyes_plugins.data import rl_rows
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.files import parquet_rows
from deepeyes_plugins.data.findings import Finding, Report
from deepeyes_plugins.data.image_checks import SeenImage, see_image, stretch_findings
from deepeyes_plugins.data.row_checks import check_rows
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.plugins import UnknownNameError
from deepeyes_plugins.rewards.hooks import rewards

COLUMNS = ("prompt", "data_source", "reward_model")
"""Columns that a file has to have."""


@dataclass(frozen=True, slots=True)
class RowRules:
    """What rows for reinforcement learning are checked against.

    Attributes:
        environment: Environment of rows in a file without ``env_name``.
        sources: Reward to use for a ``data_source`` that has none of its own name.
        media_root: Folder that image paths are relative to; ``None`` for that of the file.
    """

    environment: str = "deepeyes_v2"
    sources: Mapping[str, str] = field(default_factory=dict)
    media_root: Path | None = None

    def root_of(self, path: Path) -> Path:
        """Folder that the image paths of a file are relative to."""
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
    """Check a parquet file for reinforcement learning.

    Args:
        path: The file.
        rules: What its rows have to keep to.
        limit: Rows to check at most.
        row_groups: Those to check; all by default.
        first_row: Number of the first row in them.
        threads: That decode images; by default one per processor, eight at most.
        keep: Is handed every batch of rows as it was read.
    """
    path = Path(path)
    rules = rules or RowRules()
    rows = islice(parquet_rows(path, COLUMNS, row_groups, first_row, keep), limit)
    find = partial(rl_findings, rules=rules, media_root=rules.root_of(path))
    return check_rows(path, rows, find, threads)


def rl_findings(
    row: Mapping[str, Any], *, rules: RowRules, media_root: Path | None = None
) -> Iterator[Finding]:
    """Yield what is wrong with a row for reinforcement learning; its images are decoded."""
    try:
        row = rl_rows.plain_row(row)
    except RowError as error:
        yield Finding(str(error), "prompt")
        return
    seen = see_images(row, media_root)
    yield from shape_findings(seen)
    images = None if any(isinstance(one, Finding) for one in seen) else seen
    yield from column_findings(row, images, rules)


def see_images(
    row: Mapping[str, Any], media_root: Path | None = None, *, decode: bool = True
) -> list[SeenImage | Finding]:
    """Look at the images of a row."""
    images = row.get("images")
    return [
        see_image(number, image, media_root, decode=decode)
        for number, image in enumerate(images if isinstance(images, list) else [], 1)
    ]


def shape_findings(seen: Sequence[SeenImage | Finding]) -> Iterator[Finding]:
    """Yield which images cannot be used, and, where all can be, which a processor refuses."""
    broken = [one for one in seen if isinstance(one, Finding)]
    yield from broken
    for number, one in enumerate([] if broken else seen, 1):
        if isinstance(one, SeenImage):
            yield from stretch_findings(number, one.size)


def column_findings(
    row: Mapping[str, Any], seen: Sequence[SeenImage | Finding] | None, rules: RowRules
) -> Iterator[Finding]:
    """Yield what is wrong with the columns of a row.

    Args:
        row: The row.
        seen: Its images; ``None`` where one is broken: then the prompt is not read.
        rules: What it has to keep to.
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
        yield Finding(f"{stale!r} is a stale name and read as {current!r}", "env_name", "warning")
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


def with_images(row: Mapping[str, Any], seen: Sequence[SeenImage | Finding]) -> Mapping[str, Any]:
    """Put the images that were looked at in their places, so that no file is read twice."""
    if not isinstance(row.get("images"), list):
        return row
    return {**row, "images": [one.image for one in seen if isinstance(one, SeenImage)]}
