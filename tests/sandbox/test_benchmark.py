"""The benchmark as a program; what it measures is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sandbox.py"


def run(*options: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], Path, Path]:
    figures, plot = folder / "new" / "figures.json", folder / "plot.png"
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--json", str(figures), "--plot", str(plot)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return finished, figures, plot


def test_a_quick_run_compares_with_a_peer_and_writes_figures_and_a_plot(tmp_path: Path) -> None:
    finished, figures, plot = run("--quick", "--only", "trivial", folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    document = json.loads(figures.read_text())
    assert set(document) == {"date", "machine", "options", "systems", "figures"}
    assert {"cores", "kernel", "python", "numpy", "matplotlib", "ipykernel", "ipython"} <= set(
        document["machine"]
    )
    assert {"deepeyes", "ipykernel"} <= set(document["systems"])
    [(name, figure)] = document["figures"].items()
    assert (name, figure["unit"], figure["target"]) == ("trivial", "ms", 2.5)
    for system in ("deepeyes", "ipykernel"):
        found = figure["systems"][system]
        assert 0 < found["median"] <= found["p95"]
        assert found["count"] == 10
    assert figure["reached"] == (figure["systems"]["deepeyes"]["median"] <= 2.5)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "trivial cell" in finished.stdout


def test_an_unknown_measure_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    finished, figures, _ = run("--only", "trivia", folder=tmp_path)
    assert finished.returncode == 2
    assert "trivial" in finished.stderr
    assert not figures.exists()


def test_a_legacy_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    finished, figures, _ = run(
        *("--quick", "--only", "trivial", "--system", "deepeyes"),
        *("--legacy", "absent=http://127.0.0.1:9"),
        folder=tmp_path,
    )
    assert finished.returncode == 1
    assert "absent" in finished.stderr
    assert not figures.exists()
