"""The package without any extra: what its own dependencies are enough for."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.packaging.conftest import REPOSITORY, FreshEnvironment


@pytest.fixture(scope="module")
def base(make_environment: Callable[[], FreshEnvironment], wheel: Path) -> FreshEnvironment:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    environment = make_environment()
    environment.pip("install", "--quiet", "--no-deps", wheel)
    environment.add_packages(*(Requirement(line).name for line in project["dependencies"]))
    return environment


def test_plugins_are_listed(base: FreshEnvironment) -> None:
    listed = json.loads(base.run("deepeyes", "plugins", "--json"))

    kinds = {"tool", "environment", "reward", "formatter"}
    assert kinds | {"search provider", "image search provider"} == {row["kind"] for row in listed}


def hint(wheel: Path, extra: str) -> str:
    """What installs an extra, where the package was installed from a wheel."""
    return f"pip install 'deepeyes-plugins[{extra}] @ {wheel.as_uri()}'"


def test_the_doctor_finds_the_frameworks_absent_and_nothing_wrong(
    base: FreshEnvironment, wheel: Path
) -> None:
    findings = json.loads(base.run("deepeyes", "doctor", "--json"))

    absent = {row["area"]: row for row in findings if row["status"] == "absent"}
    assert {"sft", "rl", "eval", "sandbox"} <= set(absent)
    assert absent["rl"]["action"] == hint(wheel, "rl")
    assert "problem" not in {row["status"] for row in findings}


def test_what_the_doctor_says_can_be_installed(base: FreshEnvironment, wheel: Path) -> None:
    command = shlex.split(hint(wheel, "rl"))

    base.pip(*command[1:], "--quiet", "--dry-run", "--no-deps", "--no-index")


@pytest.mark.parametrize("area", ["sft", "rl", "eval", "sandbox"])
def test_what_is_required_must_not_be_absent(base: FreshEnvironment, area: str) -> None:
    answer = base.run("deepeyes", "doctor", "--json", "--require", area, "--only", area, exits=1)

    assert [row["status"] for row in json.loads(answer)] == ["problem"]


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("quickstart --fast", "all"),
        ("sandbox serve --port 0", "sandbox"),
        ("search index info nowhere", "search"),
        ("eval run --data VStarBench", "eval"),
    ],
)
def test_a_command_says_which_extra_it_lacks(
    base: FreshEnvironment, wheel: Path, tmp_path: Path, command: str, extra: str
) -> None:
    answer = subprocess.run(
        [base.folder / "bin" / "deepeyes", *command.split()],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert answer.returncode == 1
    assert hint(wheel, extra) in answer.stderr
    assert "Traceback" not in answer.stderr
