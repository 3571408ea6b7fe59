"""Check the rows of a file, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from deepeyes_plugins.data.files import ROWS_AT_A_TIME, Row
from deepeyes_plugins.data.findings import Finding, Problem, Report


def check_rows(
    path: Path,
    rows: Iterator[Row],
    find: Callable[[Mapping[str, Any]], Iterable[Finding]],
    threads: int | None = None,
) -> Report:
    """Check ``rows`` in threads: decoding images is most of the work and holds no lock.

    Args:
        path: The file that they are of.
        rows: Its rows.
        find: Yields what is wrong with the value of a row.
        threads: By default one per processor, eight at most.
    """

    def findings(row: Row) -> list[Finding]:
        if row.finding is not None:
            return [row.finding]
        if not isinstance(row.value, Mapping):
            return [Finding(f"the row is a {type(row.value).__name__}, not an object")]
        return list(find(row.value))

    report = Report(path)
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(rows, ROWS_AT_A_TIME)):
            for row, found in zip(chunk, pool.map(findings, chunk), strict=True):
                report.rows += row.finding is None
                report.problems += (
                    Problem(path, row.number, one.key, one.reason, one.level) for one in found
                )
    if not report.rows and report.ok:
        report.problems.append(Problem(path, None, "", "the file has no rows", "error"))
    return report
