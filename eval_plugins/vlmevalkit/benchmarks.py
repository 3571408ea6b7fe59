"""Converter of the published search benchmarks to VLMEvalKit's tables.

Sources of the layouts: FVQA of MMSearch-R1 (lmms-lab/FVQA; the
sample mini_data.pq of EvolvingLMMs-Lab/multimodal-search-r1), InfoSeek (the README of
open-vision-language/infoseek, infoseek_eval.py of edchengg/infoseek_eval) and MMSearch
(eval_end2end.py of CaraJ7/MMSearch).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.media import confined
from deepeyes_plugins.files import read_json
from deepeyes_plugins.protocol.missing import is_missing, text_of
from eval_plugins.vlmevalkit.constants import SEARCH_COLUMNS

Candidate = str | dict[str, list[float]]

_ROWS_AT_A_TIME = 32
_OVEN_IMAGE = re.compile(r"oven_\d+", re.IGNORECASE)
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg"}


class SourceError(ValueError):
    """A published file cannot be used; the message names file, row and reason."""


@dataclass(frozen=True)
class Question:
    """One sample of a benchmark.

    Attributes:
        index: Published id, or the row number.
        question: Text of the question.
        answer: Reference answer.
        candidates: Further accepted answers.
        images: The question's image files, as published.
        category: Category within the benchmark.
    """

    index: str
    question: str
    answer: str
    candidates: tuple[Candidate, ...] = ()
    images: tuple[bytes, ...] = ()
    category: str = ""


def table_root() -> Path:
    """Return VLMEvalKit's folder of tables: ``$LMUData`` if it exists, else ``~/LMUData``."""
    chosen = os.environ.get("LMUData", "")  # noqa: SIM112 (VLMEvalKit's name)
    return Path(chosen) if chosen and Path(chosen).exists() else Path.home() / "LMUData"


def read_fvqa(source: Path) -> Iterator[Question]:
    """Read a parquet file in the layout of MMSearch-R1: FVQA, and its sample of InfoSeek.

    Columns: ``prompt`` [{content, role}], ``images`` [{bytes}], ``reward_model`` {ground_truth,
    candidate_answers: a JSON list as text}; ``data_id`` and ``category`` are optional.

    Raises:
        SourceError: The file or a row cannot be used.
    """
    for number, row in _parquet_rows(source, ("prompt", "images", "reward_model")):
        where = f"{source}, row {number}"
        asked = [turn for turn in row["prompt"] or [] if turn.get("role") == "user"]
        if not asked:
            raise SourceError(f"{where}: prompt has no user message")
        reward = row["reward_model"] or {}
        yield Question(
            index=text_of(row.get("data_id")) or str(number),
            question=_text(asked[-1].get("content"), where, "prompt")
            .removeprefix("<image>")
            .strip(),
            answer=_text(reward.get("ground_truth"), where, "reward_model.ground_truth"),
            candidates=_candidates(reward.get("candidate_answers"), where),
            images=tuple(_image(image, where) for image in row["images"] or []),
            category=text_of(row.get("category")),
        )


def read_mmsearch(source: Path, only_with_image: bool = False) -> Iterator[Question]:
    """Read the end-to-end questions of MMSearch.

    Columns: ``sample_id``, ``query``, ``query_image`` {bytes} or null, ``gt_answer``,
    ``alternative_gt_answers`` [text], ``area``, ``subfield``.

    Args:
        source: end2end.parquet.
        only_with_image: Skip questions without an image.

    Raises:
        SourceError: The file or a row cannot be used.
    """
    for number, row in _parquet_rows(source, ("query", "query_image", "gt_answer")):
        where = f"{source}, row {number}"
        image = row["query_image"]
        if image is None and only_with_image:
            continue
        yield Question(
            index=text_of(row.get("sample_id")) or str(number),
            question=_text(row["query"], where, "query"),
            answer=_text(row["gt_answer"], where, "gt_answer"),
            candidates=_candidates(row.get("alternative_gt_answers"), where),
            images=() if image is None else (_image(image, where),),
            category=text_of(row.get("area")),
        )


def read_infoseek(
    source: Path, images: Path | None = None, sample: int | None = None, seed: int = 0
) -> Iterator[Question]:
    """Read InfoSeek: its own jsonl with the images of OVEN, or the parquet sample of MMSearch-R1.

    Keys of the jsonl: ``data_id``, ``image_id``, ``question``, ``answer`` [text], ``answer_eval``
    [text, or {"wikidata": number, "range": [low, high]}].

    Args:
        source: ``infoseek_val.jsonl`` or the like; a ``.parquet`` is read by :func:`read_fvqa`.
        images: Folder with OVEN's images, ``…/oven_01963180.jpg``, at any depth.
        sample: Number of questions to draw at random; all by default.
        seed: Random seed of the sample.

    Raises:
        SourceError: The file or a row cannot be used, or an image is missing.
    """
    if source.suffix == ".parquet":
        questions = read_fvqa(source)
        yield from questions if sample is None else _draw(list(questions), sample, seed)
        return
    if images is None:
        raise SourceError(f"{source} has no images: give the folder of OVEN's images by --images")
    files = {
        path.stem.casefold(): path for path in images.rglob("*") if _OVEN_IMAGE.match(path.stem)
    }
    for number, row in _draw(list(_json_lines(source)), sample, seed):
        where = f"{source}, line {number}"
        answers = _entries(row.get("answer"), where)
        name = str(row.get("image_id", ""))
        path = files.get(name.casefold())
        if path is None:
            raise SourceError(f"{where}: no image {name!r} in {images}")
        yield Question(
            index=text_of(row.get("data_id")) or str(number),
            question=_text(row.get("question"), where, "question"),
            answer=_text(answers[0] if answers else None, where, "answer"),
            candidates=_candidates([*answers[1:], *_entries(row.get("answer_eval"), where)], where),
            images=(_checked(_oven(path, images, where), f"{where}, {path}"),),
        )


def _oven(path: Path, folder: Path, where: str) -> bytes:
    try:
        confined(path.name, str(path), (folder,), "--images")
        return path.read_bytes()
    except (OSError, RowError) as error:
        raise SourceError(f"{where}: image_id: {error}") from error


def write_table(name: str, questions: Iterable[Question], folder: Path) -> tuple[Path, int]:
    """Write ``<folder>/<name>.tsv`` and ``<folder>/images/<name>/…``.

    The image files are copied unchanged. On failure nothing is written, and an earlier table and
    its images stay unchanged.

    Args:
        name: Name of the dataset.
        questions: The samples.
        folder: VLMEvalKit's folder of tables.

    Returns:
        The table's path and its number of rows.

    Raises:
        SourceError: Two samples have the same index, or there are no samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / "images" / name
    seen: set[str] = set()
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as scratch:
        partial, images = Path(scratch, "table"), Path(scratch, "images")
        images.mkdir()
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, "excel-tab", lineterminator="\n")
            writer.writerow(SEARCH_COLUMNS)
            for question in questions:
                if question.index in seen:
                    raise SourceError(f"two samples have the index {question.index!r}")
                seen.add(question.index)
                files = [f"images/{name}/{file}" for file in _write_images(question, images)]
                writer.writerow(_row(question, files))
        if not seen:
            raise SourceError("the source has no questions")
        home.mkdir(parents=True, exist_ok=True)
        for image in images.iterdir():
            image.replace(home / image.name)
        table = partial.replace(folder / f"{name}.tsv")
    return table, len(seen)


def _write_images(question: Question, folder: Path) -> list[str]:
    """Write the images and return their file names."""
    safe, names = re.sub(r"[^\w.-]", "_", question.index), []
    for number, data in enumerate(question.images):
        part = f"_{number}" if len(question.images) > 1 else ""
        name = f"{safe}{part}.{_extension(data)}"
        if (folder / name).exists():  # Another index maps to the same safe name.
            name = f"{hashlib.sha256(question.index.encode()).hexdigest()[:16]}_{name}"
        (folder / name).write_bytes(data)
        names.append(name)
    return names


def _row(question: Question, files: list[str]) -> list[str]:
    return [
        question.index,
        json.dumps(files),
        question.question,
        question.answer,
        json.dumps(question.candidates, ensure_ascii=False),
        question.category,
    ]


def _extension(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        kind = image.format or "PNG"
    return _EXTENSIONS.get(kind, kind.lower())


def _parquet_rows(source: Path, columns: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with pq.ParquetFile(source) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise SourceError(f"{source} lacks the columns {', '.join(missing)}")
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except (OSError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        hint = ""
        if source.is_file() and source.read_bytes()[:20].startswith(b"version https://git"):
            hint = "; it is a git-lfs pointer: run `git lfs pull`"
        raise SourceError(f"{source} cannot be read as parquet: {error}{hint}") from error


def _json_lines(source: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with source.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = read_json(line)
                    if not isinstance(row, dict):
                        raise SourceError(f"{source}, line {number}: not an object")
                    yield number, row
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SourceError(f"{source} cannot be read as JSON lines: {error}") from error


def _draw(rows: list[Any], count: int | None, seed: int) -> list[Any]:
    """Draw rows at random and preserve their order."""
    if count is None or count >= len(rows):
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), count))
    return [rows[number] for number in chosen]


def _text(value: Any, where: str, key: str) -> str:
    text = text_of(value).strip() if isinstance(value, str | int | float) else ""
    if not text:
        raise SourceError(f"{where}: {key} is empty")
    return text


def _listed(value: Any) -> list[Any]:
    """Convert a value to a list: parse JSON text, wrap a single value."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = read_json(value)
    if is_missing(value):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _entries(value: Any, where: str) -> list[Any]:
    try:
        return _listed(value)
    except json.JSONDecodeError as error:
        raise SourceError(f"{where}: the answers are not a JSON list: {error}") from error


def _candidates(value: Any, where: str) -> tuple[Candidate, ...]:
    found: list[Candidate] = []
    for entry in _entries(value, where):
        if is_missing(entry):
            continue
        if isinstance(entry, dict) and "range" in entry:
            try:
                low, high = map(float, entry["range"][:2])
            except (TypeError, ValueError) as error:
                raise SourceError(f"{where}: {entry!r} has no range of two numbers") from error
            found.append({"range": [low, high]})
        elif isinstance(entry, str | int | float):
            found.append(str(entry).strip())
        else:
            raise SourceError(f"{where}: {entry!r} is not an answer")
    return tuple(filter(None, found))


def _image(value: Any, where: str) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, list):  # Some writers store bytes as numbers.
        data = bytes(data)
    if not isinstance(data, bytes) or not data:
        raise SourceError(f"{where}: an image has no bytes")
    return _checked(data, where)


def _checked(data: bytes, where: str) -> bytes:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
    except Exception as error:  # Pillow raises many types for a broken file.
        raise SourceError(f"{where}: an image cannot be read: {error}") from error
    return data
