"""Keep the questions that teach something: neither trivial nor hopeless, and better with tools.

The rules are those of the project page of arXiv 2511.05271: what the base model solves easily is
left out; what it solves with tools is for reinforcement learning; what it does not solve even with
tools is for the cold start. The page names no numbers: samples and thresholds are ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.files import open_parquet, row_batches
from deepeyes_plugins.protocol.content import ImageError
from deepeyes_plugins.protocol.prompts import deepeyes_v2_prompt
from deepeyes_plugins.rewards.stored import ScoreRecord
from deepeyes_plugins.selection.questions import BadRow, question_of
from deepeyes_plugins.selection.sampling import Variant

TOOLS = Variant("tools")
PLAIN = Variant("plain", environment="none", system_prompt=deepeyes_v2_prompt(()))
VARIANTS = (TOOLS, PLAIN)

ROW_GROUP_BYTES = 64 << 20
"""Size of a row group from which the next one begins. Our own bound."""

Verdict = Literal["kept", "trivial", "hopeless", "no gain", "incomplete"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What is kept; accuracies are shares of the samples, 0 to 1. All defaults are ours.

    Attributes:
        most_plain: Accuracy without tools above which a question is trivial.
        least_tools: Accuracy with tools below which it is hopeless.
        least_gain: Accuracy that tools have to add.
    """

    most_plain: float = 0.75
    least_tools: float = 0.125
    least_gain: float = 0.125

    def verdict(self, tools: float, plain: float) -> Verdict:
        """Judge a question by its accuracies with and without tools."""
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


def write_kept(
    files: Iterable[Path],
    environment: str,
    judged: Mapping[str, Mapping[str, Any]],
    output: Path,
    verdict: Verdict = "kept",
) -> Iterable[dict[str, Any]]:
    """Write the rows of a verdict as they are, and yield what became of each row.

    Raises:
        OSError: The file cannot be written; an earlier one of that name stays.
    """
    partial = output.with_name(output.name + ".partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.RecordBatch] = []
    try:
        for path in files:
            number = 0
            with open_parquet(path) as file:
                writer = writer or pq.ParquetWriter(partial, file.schema_arrow)
                for batch in row_batches(file, None):
                    taken = []
                    for at, row in enumerate(batch.to_pylist()):
                        number += 1
                        facts: dict[str, Any] = {"file": str(path), "row": number}
                        try:
                            question = question_of(row, environment)
                        except (RowError, ImageError) as error:
                            yield BadRow(path, number, str(error)).facts
                            continue
                        found = judged.get(question.key, {"verdict": "incomplete"})
                        if found["verdict"] == verdict:
                            taken.append(at)
                        yield {**facts, "question": question.key, "name": question.name, **found}
                    waiting.append(batch.take(pa.array(taken, pa.int64())))
                    if sum(one.nbytes for one in waiting) >= ROW_GROUP_BYTES:
                        writer.write_table(pa.Table.from_batches(waiting))
                        waiting = []
        if writer is not None and waiting:
            writer.write_table(pa.Table.from_batches(waiting))
    finally:
        if writer is not None:
            writer.close()
    partial.replace(output)
