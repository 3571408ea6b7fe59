"""A local table, and VLMEvalKit's own entry point on it."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Vlmeval = Callable[..., subprocess.CompletedProcess[str]]


def png(colour: str, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_table(folder: Path, rows: dict[str, tuple[str, str]]) -> None:
    """Write DeepEyesQuickstart.tsv with one row per colour: its question and its answer."""
    lines = ["index\timage\tquestion\tanswer"]
    for index, (colour, (question, answer)) in enumerate(rows.items()):
        image = base64.b64encode(png(colour)).decode()
        lines.append(f"{index}\t{image}\t{question}\t{answer}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "DeepEyesQuickstart.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def vlmeval(tmp_path: Path) -> Vlmeval:
    """Runs ``python -m vlmeval`` with arguments and further environment variables."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "LMUData": str(tmp_path / "data"),
            "DEEPEYES_TRAJECTORIES": str(tmp_path / "log"),
            **variables,
        }
        return subprocess.run(
            [sys.executable, "-m", "vlmeval", "--work-dir", str(tmp_path / "out"), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )

    return run
