"""What is ours is known to LLaMA-Factory, whichever of the two is imported first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from llamafactory.data import loader
from llamafactory.data.template import TEMPLATES

from deepeyes_plugins._activation import HOOKS, state
from deepeyes_plugins.hosts.llamafactory.register import register_processors, register_templates
from deepeyes_plugins.hosts.llamafactory.template import DeepEyesTemplate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("deepeyes_qwen2_vl", "deepeyes_qwen3_vl")


def test_llamafactory_first() -> None:
    for module in HOOKS:
        if module.startswith("llamafactory."):
            assert state[module] == "registered"
    for name in NAMES:
        assert isinstance(TEMPLATES[name], DeepEyesTemplate)
        assert not TEMPLATES[name].replace_jinja_template


def test_ours_first() -> None:
    program = f"""
import deepeyes_plugins.hosts.llamafactory.template
from deepeyes_plugins._activation import state
from llamafactory.data.template import TEMPLATES
print({{name: state[name] for name in state if name.startswith("llamafactory")}})
assert TEMPLATES.keys() >= {set(NAMES)!r}
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("'registered'") == 3


def test_registering_again_changes_nothing() -> None:
    before = dict(TEMPLATES), loader.SupervisedDatasetProcessor
    register_templates(sys.modules["llamafactory.data.template"])
    register_processors(loader)
    assert (dict(TEMPLATES), loader.SupervisedDatasetProcessor) == before


def test_the_benchmark_of_the_formatter_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from data_measures.formatter import measure

    figure = measure(True)

    assert figure.value > 0 and all(speed > 0 for speed in figure.details.values())
