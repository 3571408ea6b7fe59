"""Preparation of RL files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from deepeyes_plugins.data.check.rl import RowRules, rl_findings
from deepeyes_plugins.data.files import parquet_schema
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.media import read_media
from deepeyes_plugins.data.prepare.changes import Outcome
from deepeyes_plugins.data.prepare.parts import (
    REPORT_NAME,
    Prepared,
    describe_places,
    make_parts,
    summed,
    working_in,
    write_report,
)
from deepeyes_plugins.data.prepare.rl_rows import common_schema, repair_rl_row
from deepeyes_plugins.data.sources import Progress, Sources, no_progress
from deepeyes_plugins.environments.hooks import environments
from deepeyes_plugins.rewards.hooks import rewards


def prepare_rl(
    sources: Sequence[Path],
    output: Path,
    *,
    rules: RowRules | None = None,
    media: Sequence[Path] = (),
    source: str = "",
    keep_bad: bool = False,
    progress: Progress = no_progress,
) -> Prepared:
    """Prepare RL files: one output per input, all with one schema.

    Args:
        sources: Parquet files, folders of them, and zip files of images.
        output: Folder for files of the same names and the report.
        rules: Settings that rows are checked against, as in training.
        media: Folders and zip files with images that rows name by a path; by default the folders
            of the sources.
        source: ``data_source`` of rows without one.
        keep_bad: Whether to write rows that cannot be repaired, if they fit the schema.
        progress: Called with file, number of rows done, and total rows if known.

    Raises:
        DataError: There is no input, a source cannot be read to its end, or the output cannot be
            written.
    """
    rules = rules or RowRules()
    found = Sources.find(sources, (".parquet",), "parquet", media)
    targets = {file: output / file.name for file in found.files}
    report = output / REPORT_NAME
    found.refuse(output, report, *targets.values())
    if twice := [name for name, count in Counter(map(_name, found.files)).items() if count > 1]:
        raise DataError(
            f"several sources are named {twice[0]}; prepare them one by one into different folders"
        )
    schema = _schema(found.files)

    def repair(value: Mapping[str, Any]) -> Outcome:
        outcome = repair_rl_row(
            value,
            schema=schema,
            environment=rules.environment,
            source=source,
            read_image=lambda name: read_media(found.places.locate(name)),
        )
        if not outcome.faults and outcome.row is not None:
            findings = rl_findings(outcome.row, rules=rules)
            outcome.faults += (one for one in findings if one.level == "error")
        return outcome

    known = [sorted(environments()), sorted(rewards())]
    settings = [asdict(rules), source, describe_places(found.places), known]
    with working_in(output, "rl") as work:
        parts = make_parts(
            targets, work, repair, settings, keep_bad=keep_bad, progress=progress, schema=schema
        )
        summary = summed(parts)
        write_report(report, parts)
    before = sum(part.found for part in parts)
    return Prepared(tuple(targets.values()), report, summary, len(parts), before)


def _name(file: Path) -> str:
    return file.name


def _schema(files: Sequence[Path]) -> pa.Schema:
    """Return the schema of all files.

    Raises:
        DataError: Some files cannot be read; the message names them.
    """
    schemas, unreadable = [], []
    for file in files:
        try:
            schemas.append(parquet_schema(file))
        except DataError as error:
            unreadable.append(str(error))
    if unreadable:
        raise DataError("\n".join(unreadable))
    return common_schema(schemas)
