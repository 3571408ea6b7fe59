"""The recipes of the paper's three groups, against the installed build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import vlmeval.api
import vlmeval.config
import vlmeval.dataset
import yaml

from deepeyes_plugins.search.availability import search_is_on
from eval_plugins.vlmevalkit.settings import AGENT_DEFAULTS, SERVER_DEFAULTS, load_evaluation

RECIPES = Path(__file__).parents[2] / "recipes"
COUNTS = {"eval_real_world.json": 11, "eval_math.json": 6, "eval_search.json": 4}


@pytest.mark.parametrize("name", COUNTS)
def test_upstream_has_every_class_for_its_dataset(name: str) -> None:
    recipe = json.loads((RECIPES / name).read_text())
    assert len(recipe["data"]) == COUNTS[name]
    for dataset, entry in recipe["data"].items():
        class_ = getattr(vlmeval.dataset, entry["class"])
        assert entry["dataset"] == dataset and dataset in class_.supported_datasets()
    assert hasattr(vlmeval.api, recipe["model"]["DeepEyesV2"]["class"])


@pytest.mark.parametrize("name", COUNTS)
def test_the_limits_are_the_published_ones_and_search_is_on_in_the_third(name: str) -> None:
    recipe = json.loads((RECIPES / name).read_text())
    keywords = recipe["model"]["DeepEyesV2"]
    del keywords["class"]
    settings = load_evaluation(str(RECIPES / "agent.yaml"), **keywords)
    server, agent = settings.server, settings.agent
    assert (server.temperature, server.max_tokens) == (0, 20_480)
    assert (agent.limits.turns, agent.sandbox.cell_timeout) == (10, 60)
    for dataset in recipe["data"]:
        assert search_is_on(dataset, agent.search.policy) == (name == "eval_search.json")


@pytest.mark.parametrize("name", [*COUNTS, "agent.yaml", "agent_v1.yaml"])
def test_no_recipe_repeats_the_defaults_of_an_evaluation(name: str) -> None:
    read = yaml.safe_load((RECIPES / name).read_text())
    section = read["model"]["DeepEyesV2"] if "model" in read else read.get("evaluation") or {}
    assert not set(section) & (set(AGENT_DEFAULTS) | set(SERVER_DEFAULTS))


@pytest.fixture
def config(tmp_path: Path) -> str:
    """An agent.yaml for training and evaluation."""
    path = tmp_path / "agent.yaml"
    path.write_text(
        "limits: {turns: 9, images: 4}\nevaluation: {max_tokens: 700, limits: {turns: 7}}\n"
    )
    return str(path)


def turns(*arguments: str, **keywords: Any) -> int:
    return load_evaluation(*arguments, **keywords).agent.limits.turns


def test_the_file_overrides_the_defaults_and_the_run_overrides_the_file(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert turns() == 10
    assert turns(config) == 7
    assert turns(config, limits={"turns": 5}) == 5
    monkeypatch.setenv("DEEPEYES_LIMITS_TURNS", "3")
    assert turns(config) == 3


def test_keys_outside_of_the_section_count_where_it_does_not_replace_them(config: str) -> None:
    assert load_evaluation(config).agent.limits.images == 4
    assert load_evaluation(config).server.max_tokens == 700
    Path(config).write_text("limits: {turns: 9}")
    assert turns(config) == 9


@pytest.mark.parametrize(
    ("variable", "text", "keywords"),
    [
        ("DEEPEYES_LIMITS_TURNS", "3", {"limits": {"turns": 5}}),
        ("DEEPEYES_LIMITS", '{"turns": 3}', {"limits": {"turns": 5}}),
        ("DEEPEYES_OPENAI_MAX_TOKENS", "3", {"max_tokens": 5}),
        ("DEEPEYES_EVAL_SYSTEM_PROMPT", "3", {"system_prompt": "5"}),
    ],
)
def test_a_keyword_and_a_variable_of_one_key_work_for_one_version_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, keywords: dict[str, Any]
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.warns(FutureWarning, match=f"{variable} and the model's keyword"):
        read = load_evaluation(**keywords)
    seen = (read.agent.limits.turns, read.server.max_tokens, read.prompt.system_prompt)
    assert sum(str(value) == "3" for value in seen) == 1


def test_a_variable_of_another_key_or_with_the_same_value_is_no_conflict(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setenv("DEEPEYES_LIMITS_IMAGES", "3")
    monkeypatch.setenv("DEEPEYES_OPENAI_PROFILE", "vllm")
    assert turns(limits={"turns": 5}, profile="vllm") == 5
    assert not recwarn.list


def test_a_renamed_key_works_in_an_evaluation_too(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("evaluation: {limits: {engine_patience: 5}}")
    with pytest.warns(FutureWarning, match=r"use limits\.turn_timeout"):
        assert load_evaluation(str(config)).agent.limits.turn_timeout == 5
    with pytest.warns(FutureWarning, match=r"use limits\.turn_timeout"):
        assert load_evaluation(limits={"engine_patience": 6}).agent.limits.turn_timeout == 6
