"""Which engine the quickstart takes, and how it is served."""

from __future__ import annotations

import itertools
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from deepeyes_plugins.cli.paths import recipes_folder
from deepeyes_plugins.quickstart.engines import ENGINES, EngineName, lacks, why_not_vllm
from deepeyes_plugins.quickstart.plan import FAST
from deepeyes_plugins.quickstart.report import summarize_run, table


@pytest.mark.parametrize(
    ("system", "flags", "lack"),
    [
        ("Linux x86_64", ["sse4_2", "avx2"], None),
        ("Linux x86_64", ["sse4_2", "avx"], "this CPU lacks AVX2"),
        ("Linux aarch64", ["asimd"], "this is Linux aarch64"),
        ("Darwin arm64", [], "this is Darwin arm64"),
    ],
)
def test_vllm_is_chosen_where_its_build_runs(
    system: str, flags: list[str], lack: str | None
) -> None:
    found = lacks(system, flags)
    assert found == lack if lack is None else lack in str(found)


def test_here_it_runs() -> None:
    assert why_not_vllm() is None
    assert ENGINES[EngineName.VLLM].version == "0.24.0+cpu"


@pytest.mark.parametrize("name", EngineName)
def test_the_command_of_a_server_is_what_a_user_would_type(name: EngineName) -> None:
    command = ENGINES[name].command(Path("model"), recipes_folder(), "8123")
    program, *arguments = command
    assert Path(program).is_file()
    assert arguments[:6] == ["serve", "model", "--host", "127.0.0.1", "--port", "8123"]
    for option, value in itertools.pairwise(arguments):
        if option == "--config":
            assert yaml.safe_load(Path(value).read_text(encoding="utf-8"))["dtype"] == "float32"


@pytest.mark.parametrize("name", EngineName)
def test_the_summary_names_the_engine_and_its_version(name: EngineName) -> None:
    trajectories = {"accuracy": 1.0, "answered": 1, "well_formed": 1.0, "used_sandbox": 1.0}
    counts = {"tool_calls": 1.0, "infrastructure_errors": 0}
    models = ("sft", "rl", "rl_without_sandbox")
    stages = {
        "rl": {"seconds": 1.0, "accuracy_sampled": [(0, 0.5), (1, 0.75)]},
        "evaluate": {"seconds": 1.0, **{model: {**trajectories, **counts} for model in models}},
    }
    summary = summarize_run(replace(FAST, engine=name), stages)
    assert summary["engine"] == {"name": name, "version": version(name)}
    assert f"{name} {version(name)}" in str(table(summary).title)
