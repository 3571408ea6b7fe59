"""``deepeyes plugins new`` writes a package that installs, and whose tests pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(*command: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def new(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "deepeyes_plugins.cli", "plugins", "new", *arguments, cwd=cwd)


def test_the_package_installs_and_its_tests_pass(tmp_path: Path) -> None:
    made = new("Bright-Agent", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    package = tmp_path / "Bright-Agent"
    style = run(sys.executable, "-m", "ruff", "check", "--select=E,F,I,B", package, cwd=package)
    assert style.returncode == 0, style.stdout

    site = tmp_path / "site"
    install = ("install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site, package)
    installed = run(sys.executable, "-m", "pip", *install, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    tested = run(sys.executable, "-m", "pytest", "-q", cwd=package, PYTHONPATH=str(site))
    assert tested.returncode == 0, tested.stdout
    assert "4 passed" in tested.stdout


@pytest.mark.parametrize("name", ["two words", "1st", "class", "a/b"])
def test_a_name_that_is_no_package_is_refused(tmp_path: Path, name: str) -> None:
    made = new(name, cwd=tmp_path)
    assert made.returncode == 2
    assert "cannot be a Python package" in made.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    made = new("agent", "--output", tmp_path / "mine", cwd=tmp_path)
    assert made.returncode == 1
    assert "is not an empty folder" in made.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
