"""Selection of RL questions: neither trivial nor hopeless, and better with tools.

The rules are those of the project page of arXiv 2511.05271: what the base model solves easily is
dropped; what it solves with tools is for RL; what it does not solve even with tools is for the cold
start. Numbers of samples and thresholds are not published.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pyarrow as pa

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.files import parquet_schema
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.writers import row_writer
from deepeyes_plugins.protocol.content import ImageError
from deepeyes_plugins.protocol.prompts import deepeyes_v2_prompt
from deepeyes_plugins.rewards.offline import ScoreRecord
from deepeyes_plugins.selection.questions import BadRow, question_of, read_rows
from deepeyes_plugins.selection.sampling import Variant

TOOLS = Variant("tools")
PLAIN = Variant("plain", environment="none", system_prompt=deepeyes_v2_prompt(()))
VARIANTS = (TOOLS, PLAIN)

Verdict = Literal["kept", "trivial", "hopeless", "no gain", "incomplete"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds of accuracies, which are shares of the samples from 0 to 1.

    Attributes:
        most_plain: Accuracy without tools above which a question is trivial.
        least_tools: Accuracy with tools below which it is hopeless.
        least_gain: Minimum gain in accuracy by tools.
    """

    most_plain: float = 0.75
    least_tools: float = 0.125
    least_gain: float = 0.125

    def verdict(self, tools: float, plain: float) -> Verdict:
        """Return the verdict on a question by its accuracies with and without tools."""
        if plain > self.most_plain:
            return "trivial"
        if tools < self.least_tools:
            return "hopeless"
        return "kept" if tools - plain >= self.least_gain else "no gain"


def judge_questions(
    records: Iterable[ScoreRecord], samples: int, thresholds: Thresholds
) -> dict[str, dict[str, Any]]:
    """Return accuracies and verdict of each question by its key."""
    found: defaultdict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        accuracy = record.parts.get("acc", record.score)
        found[str(record.labels["question"])][str(record.labels["variant"])].append(accuracy)
    judged: dict[str, dict[str, Any]] = {}
    for key, by_variant in found.items():
        if any(len(by_variant[variant.name]) < samples for variant in VARIANTS):
            judged[key] = {"verdict": "incomplete"}
            continue
        tools, plain = (fmean(by_variant[variant.name]) for variant in VARIANTS)
        verdict = thresholds.verdict(tools, plain)
        judged[key] = {"tools": tools, "plain": plain, "verdict": verdict}
    return judged


def common_columns(files: Iterable[Path]) -> pa.Schema:
    """Return a common schema for the rows of all files.

    Raises:
        DataError: A file cannot be read, or its columns conflict with those of the others.
    """
    schema: pa.Schema | None = None
    for path in files:
        columns = parquet_schema(path)
        try:
            schema = pa.unify_schemas([schema or columns, columns], promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(
                f"{path}: its columns conflict with those of the other files: {error}. Join the "
                "files with deepeyes data merge"
            ) from error
    return schema if schema is not None else pa.schema([])


def write_kept(
    files: Iterable[Path],
    environment: str,
    judged: Mapping[str, Mapping[str, Any]],
    output: Path,
    schema: pa.Schema,
    verdict: Verdict = "kept",
) -> Iterator[dict[str, Any]]:
    """Write the rows with a verdict unchanged, and yield a report of each row.

    Args:
        files: RL parquet.
        environment: Environment of rows that name none.
        judged: From :func:`judge_questions`.
        output: The parquet file, written atomically when all rows have been yielded.
        schema: Its columns, from :func:`common_columns`.
        verdict: Verdict of the rows to write.

    Raises:
        DataError: A file cannot be read, or the output cannot be written; an existing file is
            unchanged.
    """
    with row_writer(output, schema) as writer:
        for path, number, row in read_rows(files):
            try:
                question = question_of(row, environment)
            except (RowError, ImageError) as error:
                yield BadRow(path, number, str(error)).facts
                continue
            found = judged.get(question.key, {"verdict": "incomplete"})
            if found["verdict"] == verdict:
                writer.write(row)
            facts = {"file": str(path), "row": number}
            yield {**facts, "question": question.key, "name": question.name, **found}
