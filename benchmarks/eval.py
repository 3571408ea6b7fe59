"""Benchmarks of evaluations against their targets: a table and a JSON file.

The measures are the modules of `eval_measures`; `--only NAME` takes one of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from eval_measures import MEASURES
from reporting.measures import measure

DEFAULT_FILE = Path(__file__).parents[1] / "runs" / "benchmarks" / "eval.json"


def main(
    only: Annotated[list[str] | None, typer.Option(help="Measure only this; repeatable.")] = None,
    quick: Annotated[bool, typer.Option(help="Smoke test with few samples.")] = False,
    file: Annotated[
        Path, typer.Option("--json", metavar="PATH", help="Output file.")
    ] = DEFAULT_FILE,
) -> None:
    """Run the measurements, show and write the results."""
    measure(MEASURES, only, quick, file)


if __name__ == "__main__":
    typer.run(main)
