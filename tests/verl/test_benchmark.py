"""The rollout benchmark as a program; what it measures is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "rollout.py"


def run(*options: str, figures: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options, "--json", str(figures)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def test_a_quick_run_of_the_parts_without_verls_trainer(tmp_path: Path) -> None:
    figures = tmp_path / "new" / "figures.json"
    parts = ("--only", "turn", "--only", "lag", "--only", "makespan")
    finished = run("--quick", *parts, figures=figures)
    assert finished.returncode == 0, finished.stderr
    document = json.loads(figures.read_text())
    assert set(document) == {"date", "machine", "options", "figures"}
    found = document["figures"]
    assert list(found) == ["barrier", "critical_path", "turn", "turn_growth", "lag", "memory"]
    goals = {key: (figure["better"], figure["goal"]) for key, figure in found.items()}
    assert goals["barrier"] == ("more", 2)
    assert goals["critical_path"] == ("less", 10)
    assert goals["turn"] == ("less", 10)
    assert goals["lag"] == ("less", 50)
    assert goals["memory"] == ("less", None) and found["memory"]["reached"] is None
    assert found["turn"]["reached"] == (found["turn"]["value"] <= 10)
    assert found["turn"]["details"]["images"] == 10
    assert 14_000 < found["turn"]["details"]["tokens"] < 18_000
    # Nobody is faster than the trajectory that takes longest alone.
    makespan = found["barrier"]["details"]
    assert makespan["critical_path"] < makespan["ours"]
    assert makespan["critical_path"] < makespan["replica_barrier"] <= makespan["barrier"]
    for figure in found.values():
        assert figure["title"] in finished.stdout


def test_an_unknown_measure_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    finished = run("--only", "turns", figures=tmp_path / "figures.json")
    assert finished.returncode == 2
    assert "makespan" in finished.stderr
