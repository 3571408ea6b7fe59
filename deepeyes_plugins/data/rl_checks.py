"""Check files for reinforcement learning before any GPU is taken: every row, every image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from deepeyes_plugins import plugins
from deepeyes_plugins.data import rl_rows
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.files import parquet_rows
from deepeyes_plugins.data.findings import Finding, Report
from deepeyes_plugins.data.image_checks import file_findings, stretch_findings
from deepeyes_plugins.data.row_checks import check_rows

_COLUMNS = ("prompt", "data_source", "reward_model")


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
    rows = islice(parquet_rows(path, _COLUMNS, row_groups, first_row, keep), limit)
    find = partial(rl_findings, rules=rules, media_root=rules.root_of(path))
    return check_rows(path, rows, find, threads)


def rl_findings(
    row: Mapping[str, Any], *, rules: RowRules, media_root: Path | None = None
) -> Iterator[Finding]:
    """Yield what is wrong with a row for reinforcement learning; its images are decoded."""
    images = row.get("images")
    images = images if isinstance(images, list) else []
    broken = [
        finding
        for number, image in enumerate(images, 1)
        for finding in file_findings(number, image, media_root)
    ]
    yield from broken or stretch_findings(images, media_root)
    readers: dict[str, Callable[[Mapping[str, Any]], object]] = {
        "data_source": rl_rows.data_source,
        "reward_model": rl_rows.ground_truth,
        "extra_info": rl_rows.metadata,
    }
    if not broken:
        readers["prompt"] = partial(rl_rows.prompt_messages, media_root=media_root)
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
        plugins.environments()[name]
    except plugins.UnknownNameError as error:
        yield Finding(str(error), "env_name")
    source = row.get("data_source")
    if source and isinstance(source, str):
        try:
            plugins.rewards()[rules.sources.get(source, source)]
        except plugins.UnknownNameError as error:
            hint = "Name the one to use under rewards.sources in agent.yaml."
            yield Finding(f"{error} {hint}", "data_source")
