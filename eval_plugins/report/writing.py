"""Writes a report: Markdown, JSON and the page.

```
report/report.md, report.json
report/index.html       scores, plots and the list of samples; opens from the disk, needs no server
report/data/<n>.js      trajectories, fifty a file, loaded when one of them is opened
report/images/<sha256>  copies of the images, brought to a bearable size
```

One file with everything would be gigabytes for a whole benchmark, and a page that is opened from
the disk may load scripts and images from beside it but nothing else: so trajectories are scripts
that hold nothing but one text in base64, and images are files.
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

from deepeyes_plugins.protocol.content import turn_upright
from deepeyes_plugins.protocol.pixels import to_8bit
from deepeyes_plugins.rollout.trajectory import PartRecord, Trajectory
from eval_plugins.report.building import Run
from eval_plugins.report.contents import Report
from eval_plugins.report.markdown import to_markdown
from eval_plugins.report.rendering import render
from eval_plugins.report.results import Sample
from eval_plugins.report.trajectories import Played

logger = logging.getLogger(__name__)

IN_A_FILE = 50
"""Trajectories of one data file: some hundred kilobytes, which load at once."""
QUESTION_SHOWN = 140
"""Characters of the question in the list."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_TAGS = re.compile(r"<(think|code|tool_call|answer)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_EXECUTED = re.compile(
    r"\ACode execution result:\nstdout:\n```\n(?P<stdout>.*)\n```\n\n"
    r"stderr:\n```\n(?P<stderr>.*)\n```\s*(?:Images:)?\s*\Z",
    re.DOTALL,
)
_FENCE = re.compile(r"\A\s*```(?:python|py)?[ \t]*\n(.*?)\n?(?:```)?\s*\Z", re.DOTALL)


_FILES = ("report.json", "report.md", "index.html")


def write(report: Report, run: Run, folder: Path, *, image_side: int = 1280) -> None:
    """Write a report; one of ours that is there already is replaced.

    Args:
        report: What it says.
        run: Where samples and trajectories come from.
        folder: Where to write; it is created.
        image_side: Longest side of the images' copies, in pixels; 0 for none.

    Raises:
        OSError: The folder cannot be written, or holds something else.
    """
    _make_room(folder, report.model_dump_json(indent=2) + "\n")
    flips = _flips(report)
    images = _Images(folder / "images", image_side)
    rows = []
    waiting: list[dict[str, Any]] = []
    for number, (benchmark, sample, played) in enumerate(_samples(run)):
        name = report.benchmarks[benchmark].name
        rows.append([*_row(benchmark, sample, played), flips.get((name, sample.index), "")])
        waiting.append(_details(sample, played, images))
        if len(waiting) == IN_A_FILE:
            _write_data(folder, number // IN_A_FILE, waiting)
            waiting = []
    if waiting:
        _write_data(folder, len(rows) // IN_A_FILE, waiting)
    images.finish()
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
    (folder / "index.html").write_text(render(report, rows, IN_A_FILE), encoding="utf-8")


def _make_room(folder: Path, contents: str) -> None:
    """Make the folder, or empty one that holds an earlier report; never anything else.

    ``report.json`` is written here, first of all: by it a report that was interrupted is known for
    one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / name for name in ("data", "images")]
    if not _is_ours(folder / "report.json"):
        for path in (*parts, *(folder / name for name in _FILES)):
            if path.exists():
                raise FileExistsError(
                    f"{path} exists and belongs to no report: choose another --output"
                )
    (folder / "report.json").write_text(contents, encoding="utf-8")
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()


def _is_ours(file: Path) -> bool:
    """Whether a file says what a report of ours does: others have files of that name, too."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
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


def _samples(run: Run) -> Iterator[tuple[int, Sample, Played | None]]:
    for benchmark, result in enumerate(run.results):
        by_index = run.matched[result.name].by_index
        for sample in result.samples:
            yield benchmark, sample, by_index.get(sample.index)


def _row(benchmark: int, sample: Sample, played: Played | None) -> list[Any]:
    """What the list knows of a sample: short, since the page holds all of them."""
    verdict = "failed" if sample.failed else "unscored"
    if sample.score is not None:
        verdict = "right" if sample.score >= 0.5 else "wrong"
    tools = sorted({call.tool for call in played.record.tool_calls}) if played else []
    return [
        benchmark,
        sample.index,
        verdict,
        str(played.record.end_reason) if played else "",
        tools,
        played.record.turns if played else 0,
        " ".join(sample.question.split())[:QUESTION_SHOWN],
        " ".join(sample.prediction.split())[-60:],
    ]


def _details(sample: Sample, played: Played | None, images: _Images) -> dict[str, Any]:
    details: dict[str, Any] = {
        "question": sample.question,
        "options": sample.options,
        "reference": sample.reference,
        "prediction": sample.prediction,
        "score": sample.score,
        "note": sample.note,
        "category": sample.category,
    }
    if played is None:
        return details
    try:
        trajectory = played.load()
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read again: %s", played.path, error)
        return details
    image = partial(images.name_of, played)
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
            "ours": turn.infrastructure_error,
            "seconds": [round(turn.generate_seconds, 2), round(turn.tool_seconds, 2)],
            "observation": list(_observed(turn.observation or (), image)),
        }


def _part(part: PartRecord, image: Callable[[str], str]) -> dict[str, str]:
    return {"image": image(part.image)} if part.image is not None else {"text": part.text or ""}


def _observed(parts: Sequence[PartRecord], image: Callable[[str], str]) -> Iterator[dict[str, str]]:
    """An observation without the frame that the protocol puts around what code prints."""
    for part in parts:
        framed = _EXECUTED.match(part.text or "")
        if framed is None:
            yield _part(part, image)
            continue
        for name in ("stdout", "stderr"):
            if framed[name].strip():
                yield {"name": name, "text": framed[name]}


def segments(text: str) -> list[tuple[str, str]]:
    """Divide a turn into what is thought, run, asked and answered.

    Returns:
        Pairs of kind (``think``, ``code``, ``tool_call``, ``answer``, ``text``) and text, without
        tags and fences; nothing of the text is lost but white space between.
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
    match = _FENCE.match(text)
    return match[1] if match else text


def _write_data(folder: Path, number: int, trajectories: Sequence[dict[str, Any]]) -> None:
    """Write a script that hands one text to the page: base64, which nothing can break out of."""
    text = json.dumps(trajectories, ensure_ascii=True, separators=(",", ":"))
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    script = f'deepeyes({number},"{packed}")\n'
    (folder / "data" / f"{number}.js").write_text(script, encoding="ascii")


class _Images:
    """Copies the images that trajectories show, each once, in some threads."""

    def __init__(self, folder: Path, side: int) -> None:
        self._folder = folder
        self._side = side
        self._names: dict[str, str] = {}
        self._listed: dict[Path, dict[str, Path]] = {}
        self._pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))

    def name_of(self, played: Played, sha256: str) -> str:
        """Name of the copy of an image; empty if there is none. Its making is begun."""
        if sha256 not in self._names:
            source = self._files(played.images).get(sha256) if self._side else None
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
    """Write an image anew, at most ``side`` pixels large: what is no image never gets there."""
    try:
        with Image.open(source, formats=_FORMATS) as image:
            if image.format == "JPEG":
                image.draft("RGB", (side, side))  # Decodes to a smaller size right away.
            small = to_8bit(turn_upright(image))
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        small.save(target, "WEBP", quality=85, method=2)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        logger.warning("%s is not shown: %s", source, error)
