"""Preparation of an SFT data set."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import get_ident
from typing import Any, BinaryIO

from deepeyes_plugins.data.check.sft import repaired_findings
from deepeyes_plugins.data.content_hash import fingerprint
from deepeyes_plugins.data.contracts import RowError
from deepeyes_plugins.data.dataset_info import DATASET_INFO, form_of
from deepeyes_plugins.data.findings import DataError
from deepeyes_plugins.data.media import is_inline, read_media
from deepeyes_plugins.data.output import whole_file
from deepeyes_plugins.data.prepare.changes import Outcome
from deepeyes_plugins.data.prepare.parts import (
    REPORT_NAME,
    Note,
    Part,
    Prepared,
    describe_places,
    make_parts,
    mark_of,
    recall,
    remember,
    summed,
    working_in,
    write_report,
)
from deepeyes_plugins.data.prepare.sft_rows import repair_sft_row
from deepeyes_plugins.data.sources import Progress, Sources, no_progress
from deepeyes_plugins.data.writers import register_dataset
from deepeyes_plugins.protocol.content import EncodedImage, ImageError

IMAGES = "images"
"""Output folder for images that rows embed as data URIs."""


def prepare_sft(
    sources: Sequence[Path],
    output: Path,
    *,
    name: str = "deepeyes_v2_sft",
    media: Sequence[Path] = (),
    columns: Sequence[str] = (),
    prefill: str = "<think>",
    decode: bool = True,
    keep_bad: bool = False,
    progress: Progress = no_progress,
) -> Prepared:
    """Prepare an SFT data set.

    Args:
        sources: JSON files (an array or lines), folders of them, and zip files of images.
        output: Folder for ``<name>.jsonl``, ``dataset_info.json`` and the report.
        name: Name of the data set.
        media: Folders and zip files with images; by default the folders of the sources.
        columns: Columns to keep besides messages and images, as strings.
        prefill: Required beginning of assistant turns; may be empty.
        decode: Whether to decode images, as the check before training does.
        keep_bad: Whether to write rows that cannot be repaired.
        progress: Called with file, number of rows done, and total rows if known.

    Raises:
        DataError: There is no input, a source cannot be read to its end, or the output cannot be
            written.
    """
    if Path(name).name != name:
        raise DataError(f"--name {name!r} must be a file name without folders")
    found = Sources.find(sources, (".json", ".jsonl"), "JSON", media)
    target, info = output / f"{name}.jsonl", output / DATASET_INFO
    report = output / f"{name}.{REPORT_NAME}"
    found.refuse(output, target, info, report)

    def locate(name: str) -> str:
        if is_inline(name):
            return _extract(name, output / IMAGES)
        return found.places.locate(name)

    def repair(value: Mapping[str, Any]) -> Outcome:
        outcome = repair_sft_row(value, locate=locate, columns=columns, prefill=prefill)
        if not outcome.faults and outcome.row is not None:
            outcome.faults += repaired_findings(outcome.row, prefill=prefill, decode=decode)
        return outcome

    forms = [repr(form_of(file)) for file in found.files]
    settings = [list(columns), prefill, decode, describe_places(found.places), forms]
    with working_in(output, f"sft-{name}") as work:
        place = work / "joined.json"
        mark = fingerprint([mark_of(file, [*settings, keep_bad]) for file in found.files])
        note = recall(place, mark, target, report)
        before = len(found.files)
        if note is None:
            files = {file: work / f"{number}.jsonl" for number, file in enumerate(found.files)}
            parts = make_parts(files, work, repair, settings, keep_bad=keep_bad, progress=progress)
            before = sum(part.found for part in parts)
            note = Note(summed(parts))
            moved = _join(target, parts)
            note.summary.count("images: the first row with images comes first", int(moved))
            write_report(report, parts)
            remember(place, mark, note, target, report)
        for left_over in [*work.glob("*.jsonl"), *work.glob("*.changes")]:
            left_over.unlink()
        register_dataset(info, name, target.name, media_roots=found.places.roots)
    return Prepared((target,), report, note.summary, len(found.files), before)


def _extract(uri: str, folder: Path) -> str:
    """Write the image of a data URI to a file named by its content hash.

    Raises:
        RowError: It is not an image.
        OSError: It cannot be written.
    """
    image = EncodedImage(read_media(uri))
    try:
        path = folder.absolute() / f"{image.sha256}.{image.media_type.rpartition('/')[2]}"
    except ImageError as error:
        raise RowError(str(error)) from error
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{get_ident()}.partial")  # Threads share the work.
        partial.write_bytes(image.data)
        partial.replace(path)
    return str(path)


def _join(target: Path, parts: Sequence[Part]) -> bool:
    """Join all parts, with the first row that has images at the top.

    Hugging Face datasets infers the type of ``images`` from the first 10 MiB, and published data
    has long stretches without images.

    Returns:
        Whether a row was moved.
    """
    first = next((at for at, part in enumerate(parts) if part.note.first_image), len(parts))
    start, length = (first < len(parts) and parts[first].note.first_image) or (0, 0)
    with whole_file(target) as partial, partial.open("wb") as joined:
        if length:
            with parts[first].target.open("rb") as source:
                source.seek(start)
                joined.write(source.read(length))
        for at, part in enumerate(parts):
            with part.target.open("rb") as source:
                if at == first:
                    _copy(source, joined, start)
                    source.seek(start + length)
                shutil.copyfileobj(source, joined, 1 << 20)
    return bool(length) and (start > 0 or any(part.note.summary.written for part in parts[:first]))


def _copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
    while length:
        block = source.read(min(length, 1 << 20))
        target.write(block)
        length -= len(block)
