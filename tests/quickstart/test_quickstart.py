"""The README's first command in its short form: every stage runs, by the frameworks' commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_fast_quickstart_goes_through_all_stages(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "deepeyes"), "quickstart", "--fast", "--restart"]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )

    assert run.returncode == 0, run.stdout
    folder = tmp_path / "runs/quickstart-fast"
    assert (folder / "curves.png").stat().st_size > 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["engine"]["name"] == "vllm"
    assert list(summary["stages"]) == ["prepare", "sft", "rl", "evaluate"]
    assert summary["trajectories"]["rl"]["answered"] > 0
