from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class FreshEnvironment:
    """A virtual environment that nothing of ours was ever installed into."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", "venv", {"base": str(self.folder)}))

    def files(self) -> set[str]:
        """Everything in site-packages, folders too."""
        return {str(path.relative_to(self.site_packages)) for path in self.site_packages.rglob("*")}

    def pip(self, *arguments: str | Path) -> None:
        run(sys.executable, "-m", "pip", "--python", self.python, *arguments)

    def run(self, *arguments: str | Path, exits: int = 0, **variables: str) -> str:
        """Run a program of this environment, python or a console script; its standard output."""
        program, *rest = arguments
        return run(self.folder / "bin" / program, *rest, exits=exits, **variables)

    def add_dependencies(self) -> None:
        """Lend it the packages of the environment that runs the tests.

        Only the path is added: our own `.pth` files over there are not read from here.
        """
        lent = sysconfig.get_path("purelib")
        (self.site_packages / "zz_lent.pth").write_text(f"{lent}\n")

    def add_packages(self, *names: str) -> None:
        """Lend it some packages, by their names, and what those depend on."""
        for distribution in _with_dependencies(names).values():
            for top in {path.parts[0] for path in distribution.files or ()} - {".."}:
                source = Path(str(distribution.locate_file(top)))
                target = self.site_packages / top
                if source.exists() and not target.exists():
                    target.symlink_to(source)


def _with_dependencies(names: Iterable[str]) -> dict[str, Distribution]:
    found: dict[str, Distribution] = {}
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in found:
            found[name] = Distribution.from_name(name)
            needed = map(Requirement, found[name].requires or ())
            pending += [
                need.name
                for need in needed
                if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return found


def run(*arguments: str | Path, exits: int = 0, **variables: str) -> str:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "DEEPEYES_ACTIVATION", "DEEPEYES_AGENT_CONFIG")
    }
    answer = subprocess.run(
        [str(argument) for argument in arguments],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
        cwd="/",
    )
    assert answer.returncode == exits, f"{arguments} failed:\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def build(project: Path, folder: Path) -> Path:
    """Build the wheel of a project, without the network."""
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--no-index", "--wheel-dir", folder, project),
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel."""
    return build(REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def example_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the example plugin."""
    project = REPOSITORY / "tests" / "example_plugin"
    return build(project, tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="session")
def make_environment(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], FreshEnvironment]:
    def make() -> FreshEnvironment:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, symlinks=True)
        return FreshEnvironment(folder)

    return make


@pytest.fixture
def fresh(make_environment: Callable[[], FreshEnvironment]) -> FreshEnvironment:
    return make_environment()


@pytest.fixture(scope="session")
def installed(make_environment: Callable[[], FreshEnvironment], wheel: Path) -> FreshEnvironment:
    """An environment with our wheel and its dependencies; not to be changed."""
    environment = make_environment()
    environment.pip("install", "--quiet", "--no-deps", wheel)
    environment.add_dependencies()
    return environment
