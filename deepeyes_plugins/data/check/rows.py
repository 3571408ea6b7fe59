"""Row checks in threads, and their report."""

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
    rows: Iterator[Row], check: Callable[[Row], T], threads: int | None = None
) -> Iterator[tuple[Row, T]]:
    """Yield each row with the result of ``check``; decoding images releases the GIL.

    Args:
        rows: Rows of a file.
        check: Called in threads.
        threads: By default one per processor, at most eight; one means the caller's thread.
    """
    if threads == 1:
        yield from ((row, check(row)) for row in rows)
        return
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(rows, ROWS_AT_A_TIME)):
            yield from zip(chunk, pool.map(check, chunk), strict=True)


def form_findings(row: Row) -> list[Finding]:
    """Return a finding if the row could not be read or is no object."""
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
        path: The file.
        rows: Its rows.
        find: Yields the problems of a row's value.
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
