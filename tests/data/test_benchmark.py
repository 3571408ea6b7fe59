"""The benchmark of the data tools as a program; what it measures is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "data.py"


def run(*options: str, figures: Path) -> subprocess.CompletedProcess[str]:
    """In another folder than the benchmark's."""
    command = [sys.executable, str(SCRIPT), *options, "--json", str(figures)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=180, cwd=figures.parent, check=False
    )


def test_a_quick_check_is_compared_with_loops_that_only_decode(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    finished = run("--quick", "--only", "check", figures=figures)
    assert finished.returncode == 0, finished.stderr
    document = json.loads(figures.read_text())
    assert document["quick"] is True
    [(name, figure)] = document["figures"].items()
    assert (name, figure["unit"], figure["goal"]) == ("check", "x", 0.8)
    loops = [value for key, value in figure["details"].items() if key.endswith(" alone [s]")]
    assert len(loops) >= 2
    assert figure["value"] == min(loops) / figure["details"]["check [s]"]
    assert figure["title"].split()[0] in finished.stdout


def test_an_unknown_measure_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    finished = run("--only", "chek", figures=tmp_path / "figures.json")
    assert finished.returncode == 2
    assert "formatter" in finished.stderr
    assert not (tmp_path / "figures.json").exists()
