"""Small tables in the layouts of upstream's own datasets, and the recipe that names them."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.vlmevalkit.conftest import png

IMAGE = base64.b64encode(png("red")).decode()

CHOICES = [f"choice-{number}: which colour is it?" for number in range(8)]
CHARTS = {"chart-0: what is the highest bar?": "42", "chart-1: which year?": "1998"}
MATHS = {"math-0: what is 6 x 7?": "42", "math-1: what is 40 + 1?": "41"}
CLASSES = {
    "VStarBench_small": "ImageMCQDataset",
    "ChartQA_small": "ImageVQADataset",
    "MathVista_small": "MathVista",
}
"""Upstream chooses the scoring by the official name, which must be part of the table's."""


def write_tables(folder: Path) -> None:
    """Write the tables of CLASSES."""
    folder.mkdir(parents=True)
    _write(
        folder / "VStarBench_small.tsv",
        (
            {"question": question, "A": "blue", "B": "red", "answer": "B", "category": "colour"}
            for question in CHOICES
        ),
    )
    _write(
        folder / "ChartQA_small.tsv",
        ({"question": question, "answer": answer} for question, answer in CHARTS.items()),
    )
    _write(
        folder / "MathVista_small.tsv",
        (
            {
                "question": question,
                "answer": answer,
                "question_type": "free_form",
                "answer_type": "integer",
                "choices": "[]",
                "answer_option": "",
                "task": "figure question answering",
                "skills": "['arithmetic reasoning']",
            }
            for question, answer in MATHS.items()
        ),
    )


def write_recipe(path: Path, **more: dict[str, str]) -> Path:
    """Write a recipe for the tables of CLASSES and for more datasets."""
    data: dict[str, Any] = {
        name: {"class": class_, "dataset": name} for name, class_ in CLASSES.items()
    }
    model = {"class": "DeepEyesV2", "retry_wait": 0.01, "retries": 1}
    path.write_text(json.dumps({"model": {"DeepEyesV2": model}, "data": data | more}))
    return path


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    complete = [{"index": str(index), "image": IMAGE, **row} for index, row in enumerate(rows)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(complete[0]), dialect="excel-tab")
        writer.writeheader()
        writer.writerows(complete)
