"""``deepeyes eval report``, as people type it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from deepeyes_plugins.rollout.log import TrajectoryLog
from tests.report.runs import RunFolder, choice, play

WITHOUT_VLMEVAL = """
import sys
sys.modules["vlmeval"] = None  # Importing it fails.
from deepeyes_plugins.cli.main import app
app(prog_name="deepeyes")
"""


def deepeyes(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_VLMEVAL, "eval", "report", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_run_without_vlmeval_installed(tmp_path: Path) -> None:
    work, log = RunFolder(tmp_path / "work"), TrajectoryLog(tmp_path / "work" / "trajectories")
    rows = [choice(index, right=index < 8) for index in range(10)]
    work.multiple_choice("VStarBench", rows)
    for row in rows:
        play(log, "VStarBench", row)
    work.done("ChartQA_TEST", error_message="the table is missing")

    told = deepeyes(str(work.root), "--strict")

    assert told.returncode == 1  # Because of --strict.
    first = told.stdout.splitlines()[0]
    assert first.startswith("Do not trust: ChartQA_TEST: the dataset failed: the table is missing")
    assert "81.8" in told.stdout
    folder = work.root / "report"
    assert json.loads((folder / "report.json").read_text())["benchmarks"][0]["value"] == 80
    assert "| V\\* | 10 | 0 | 80.0 |" in (folder / "report.md").read_text()
    assert (folder / "index.html").is_file()

    # The report itself is no result, and a second one is the same.
    assert deepeyes(str(work.root)).returncode == 0


def test_a_mistake_is_told_in_a_sentence(tmp_path: Path) -> None:
    told = deepeyes(str(tmp_path / "nowhere"))
    assert told.returncode == 1
    assert "nowhere is not a folder" in told.stderr
    assert "Traceback" not in told.stderr


def test_what_is_no_report_of_ours_is_never_replaced(tmp_path: Path) -> None:
    work = RunFolder(tmp_path / "work")
    work.multiple_choice("VStarBench", [choice(index, right=True) for index in range(3)])
    mine = tmp_path / "mine"
    (mine / "data").mkdir(parents=True)
    kept = {mine / "report.json": '{"mine": 1}', mine / "data" / "precious.txt": "mine"}
    for path, text in kept.items():
        path.write_text(text)

    told = deepeyes(str(work.root), "--output", str(mine))

    assert told.returncode == 1
    assert "is not part of a report: choose another --output" in told.stderr
    assert {path: path.read_text() for path in kept} == kept
