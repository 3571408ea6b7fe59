"""Look at the rows of a file, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from deepeyes_plugins.data.files import ROWS_AT_A_TIME, Row
from deepeyes_plugins.data.findings import Finding, Problem, Report

T = TypeVar("T")


def in_threads(
    rows: Iterator[Row], look: Callable[[Row], T], threads: int | None = None
) -> Iterator[tuple[Row, T]]:
    """Yield rows with what ``look`` says of them: decoding images holds no lock.

    Args:
        rows: Of a file.
        look: Played in threads.
        threads: By default one per processor, eight at most; a single one is the caller's.
    """
    if threads == 1:
        yield from ((row, look(row)) for row in rows)
        return
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(rows, ROWS_AT_A_TIME)):
            yield from zip(chunk, pool.map(look, chunk), strict=True)


def form_findings(row: Row) -> list[Finding]:
    """Return what is wrong with a row before any key of it is looked at."""
    if row.finding is not None:
        return [row.finding]
    if not isinstance(row.value, Mapping):
        return [Finding(f"the row is a {type(row.value).__name__}, not an object")]
    return []


def check_rows(
    path: Path,
    rows: Iterator[Row],
    find: Callable[[Mapping[str, Any]], Iterable[Finding]],
    threads: int | None = None,
) -> Report:
    """Check ``rows``.

    Args:
        path: The file that they are of.
        rows: Its rows.
        find: Yields what is wrong with the value of a row.
        threads: As in :func:`in_threads`.
    """

    def findings(row: Row) -> list[Finding]:
        return form_findings(row) or list(find(row.value))

    report = Report(path)
    for row, found in in_threads(rows, findings, threads):
        report.rows += row.finding is None
        report.problems += (
            Problem(path, row.number, one.key, one.reason, one.level) for one in found
        )
    if not report.rows and report.ok:
        report.problems.append(Problem(path, None, "", "the file has no rows", "error"))
    return report
