"""Progress bar of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deepeyes_plugins.cli.console import Console
from deepeyes_plugins.jobs import Advance


@contextmanager
def progress(description: str, console: Console, *, show: bool = True) -> Iterator[Advance]:
    """Show a progress bar and yield a function of the completed and the total count."""
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not show) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
