"""Report writer: Markdown, JSON and an HTML page.

::

    report/report.md, report.json
    report/index.html       scores, plots and the list of samples; opens without a server
    report/data/<n>.js      trajectories, 50 per file, loaded on demand
    report/images/<sha256>  downscaled copies of the images

A single file would take gigabytes for a whole benchmark. A page opened from the disk may load only
scripts and images, so trajectories are scripts that hold one base64 text, and images are files.
"""

from __future__ import annotations

import base64
import gzip
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from deepeyes_plugins.data.media import confined
from deepeyes_plugins.files import read_json
from deepeyes_plugins.protocol.content import turn_upright
from deepeyes_plugins.protocol.pixels import to_8bit
from deepeyes_plugins.rollout.trajectory import PartRecord, Trajectory
from eval_plugins.report.building import Run
from eval_plugins.report.contents import Report
from eval_plugins.report.markdown import to_markdown
from eval_plugins.report.rendering import render
from eval_plugins.report.results import Sample
from eval_plugins.report.trajectories import LoggedTrajectory

logger = logging.getLogger(__name__)

SAMPLES_PER_FILE = 50
"""Trajectories per data file: a few hundred kilobytes, which load instantly."""
QUESTION_SHOWN = 140
"""Maximum length of a question in the list, in characters."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_TAGS = re.compile(r"<(think|code|tool_call|answer)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_EXECUTED = "Code execution result:\nstdout:\n```\n", "\n```\n\nstderr:\n```\n", "\n```"
"""The protocol's frame around code output: before, between and after its streams."""
_OPENING_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n")


_FILES = ("report.json", "report.md", "index.html")


def write(report: Report, run: Run, folder: Path, *, image_side: int = 1280) -> None:
    """Write a report, replacing an earlier report in the folder.

    Args:
        report: The report.
        run: The run with its samples and trajectories.
        folder: Output folder; it is created.
        image_side: Longest side of the copied images, in pixels; 0 omits images.

    Raises:
        OSError: The folder cannot be written, or contains files of another program.
    """
    _prepare_folder(folder, report.model_dump_json(indent=2) + "\n")
    flips = _flips(report)
    images = _Images(folder / "images", image_side)
    rows = []
    waiting: list[dict[str, Any]] = []
    for number, (benchmark, sample, logged) in enumerate(_samples(run)):
        name = report.benchmarks[benchmark].name
        rows.append([*_row(benchmark, sample, logged), flips.get((name, sample.index), "")])
        waiting.append(_details(sample, logged, images))
        if len(waiting) == SAMPLES_PER_FILE:
            _write_data(folder, number // SAMPLES_PER_FILE, waiting)
            waiting = []
    if waiting:
        _write_data(folder, len(rows) // SAMPLES_PER_FILE, waiting)
    images.finish()
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
    (folder / "index.html").write_text(render(report, rows, SAMPLES_PER_FILE), encoding="utf-8")


def _prepare_folder(folder: Path, contents: str) -> None:
    """Create the folder, or clear an earlier report in it; other files are never removed.

    ``report.json`` is written first, so that an interrupted report is recognised as one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / name for name in ("data", "images")]
    if not _is_ours(folder / "report.json"):
        for path in (*parts, *(folder / name for name in _FILES)):
            if path.exists():
                raise FileExistsError(
                    f"{path} exists and is not part of a report: choose another --output"
                )
    (folder / "report.json").write_text(contents, encoding="utf-8")
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()


def _is_ours(file: Path) -> bool:
    """Return whether a ``report.json`` was written by this package."""
    try:
        known = read_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(known, dict) and isinstance(known.get("benchmarks"), list)


def _flips(report: Report) -> dict[tuple[str, str], str]:
    compared = report.comparison.benchmarks if report.comparison else []
    return {
        (one.name, index): word
        for one in compared
        for word, indexes in (("gained", one.gained), ("lost", one.lost))
        for index in indexes
    }


def _samples(run: Run) -> Iterator[tuple[int, Sample, LoggedTrajectory | None]]:
    for benchmark, result in enumerate(run.results):
        by_index = run.matched[result.name].by_index
        for sample in result.samples:
            yield benchmark, sample, by_index.get(sample.index)


def _row(benchmark: int, sample: Sample, logged: LoggedTrajectory | None) -> list[Any]:
    """Return the cells of a sample in the list; short, as the page holds all samples."""
    verdict = "failed" if sample.failed else "unscored"
    if sample.score is not None:
        verdict = "right" if sample.score >= 0.5 else "wrong"
    tools = sorted({call.tool for call in logged.record.tool_calls}) if logged else []
    return [
        benchmark,
        sample.index,
        verdict,
        str(logged.record.end_reason) if logged else "",
        tools,
        logged.record.turns if logged else 0,
        " ".join(sample.question.split())[:QUESTION_SHOWN],
        " ".join(sample.prediction.split())[-60:],
    ]


def _details(sample: Sample, logged: LoggedTrajectory | None, images: _Images) -> dict[str, Any]:
    details: dict[str, Any] = {
        "question": sample.question,
        "options": sample.options,
        "reference": sample.reference,
        "prediction": sample.prediction,
        "score": sample.score,
        "note": sample.note,
        "category": sample.category,
    }
    if logged is None:
        return details
    try:
        trajectory = logged.load()
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read again: %s", logged.path, error)
        return details
    image = partial(images.name_of, logged)
    return details | {
        "task": trajectory.task_id,
        "end": str(trajectory.end_reason),
        "error": trajectory.error,
        "seconds": round(trajectory.seconds, 2),
        "images": [image(sha256) for sha256 in trajectory.question_images],
        "prompt": [
            {"role": message.role, "parts": [_part(part, image) for part in message.parts]}
            for message in trajectory.prompt
        ],
        "turns": list(_turns(trajectory, image)),
    }


def _turns(trajectory: Trajectory, image: Callable[[str], str]) -> Iterator[dict[str, Any]]:
    for turn in trajectory.turns:
        yield {
            "parts": segments(turn.text),
            "tool": turn.tool,
            "tokens": turn.tokens,
            "cut": turn.finish_reason == "length",
            "error": turn.error,
            "infrastructure": turn.infrastructure_error,
            "seconds": [round(turn.generate_seconds, 2), round(turn.tool_seconds, 2)],
            "observation": list(_observed(turn.observation or (), image)),
        }


def _part(part: PartRecord, image: Callable[[str], str]) -> dict[str, str]:
    return {"image": image(part.image)} if part.image is not None else {"text": part.text or ""}


def _observed(parts: Sequence[PartRecord], image: Callable[[str], str]) -> Iterator[dict[str, str]]:
    """Yield an observation without the protocol's frame around code output."""
    for part in parts:
        streams = _streams(part.text or "")
        if streams is None:
            yield _part(part, image)
            continue
        for name, text in zip(("stdout", "stderr"), streams, strict=True):
            if text.strip():
                yield {"name": name, "text": text}


def _streams(text: str) -> tuple[str, str] | None:
    """Return stdout and stderr of code output in the protocol's frame."""
    before, between, after = _EXECUTED
    stdout, found, rest = text.removeprefix(before).rpartition(between)
    stderr = rest.rstrip().removesuffix("Images:").rstrip()
    if not (text.startswith(before) and found and stderr.endswith(after)):
        return None
    return stdout, stderr.removesuffix(after)


def segments(text: str) -> list[tuple[str, str]]:
    """Split a turn into its thinking, code, tool call and answer.

    Returns:
        Pairs of kind (``think``, ``code``, ``tool_call``, ``answer``, ``text``) and text, without
        tags and fences. Only white space between the parts is dropped.
    """
    found: list[tuple[str, str]] = []
    position = 0
    for match in _TAGS.finditer(text):
        between = text[position : match.start()]
        kind, inner = match[1], match[2]
        found += [("text", between.strip()), (kind, _unfenced(inner) if kind == "code" else inner)]
        position = match.end()
    found.append(("text", text[position:].strip()))
    return [(kind, part.strip("\n")) for kind, part in found if part.strip()]


def _unfenced(text: str) -> str:
    body = text.strip()
    opening = _OPENING_FENCE.match(body)
    return body[opening.end() :].removesuffix("```") if opening else text


def _write_data(folder: Path, number: int, trajectories: Sequence[dict[str, Any]]) -> None:
    """Write a script that passes one base64 text to the page, so that no content can escape."""
    text = json.dumps(trajectories, ensure_ascii=True, separators=(",", ":"))
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    script = f'deepeyes({number},"{packed}")\n'
    (folder / "data" / f"{number}.js").write_text(script, encoding="ascii")


class _Images:
    """Copies the images of trajectories in threads, each image once."""

    def __init__(self, folder: Path, side: int) -> None:
        self._folder = folder
        self._side = side
        self._names: dict[str, str] = {}
        self._listed: dict[Path, dict[str, Path]] = {}
        self._pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))

    def name_of(self, logged: LoggedTrajectory, sha256: str) -> str:
        """Return the name of an image's copy and start the copy; empty without the image."""
        if sha256 not in self._names:
            source = self._files(logged.images).get(sha256) if self._side else None
            self._names[sha256] = f"{sha256}.webp" if source else ""
            if source is not None:
                self._pool.submit(_copy, source, self._folder / f"{sha256}.webp", self._side)
        return self._names[sha256]

    def _files(self, folder: Path) -> dict[str, Path]:
        if folder not in self._listed:
            files = sorted(folder.iterdir()) if folder.is_dir() else []
            self._listed[folder] = {path.stem: path for path in files}
        return self._listed[folder]

    def finish(self) -> None:
        """Wait for all copies."""
        self._pool.shutdown()


def _copy(source: Path, target: Path, side: int) -> None:
    """Decode an image and write a copy of at most ``side`` pixels; skip what is not an image."""
    try:
        confined(source.name, str(source), (source.parent,), "the log's folder")
        with Image.open(source, formats=_FORMATS) as image:
            if image.format == "JPEG":
                image.draft("RGB", (side, side))  # Decodes at a reduced size.
            small = to_8bit(turn_upright(image))
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        small.save(target, "WEBP", quality=85, method=2)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        logger.warning("%s is not shown: %s", source, error)
