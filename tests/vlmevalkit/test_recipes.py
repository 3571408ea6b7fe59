"""The recipes of the paper's three groups, against the installed build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import vlmeval.api
import vlmeval.config
import vlmeval.dataset

from deepeyes_plugins.search.availability import search_is_on
from eval_plugins.vlmevalkit.settings import load_evaluation

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


def test_what_is_nearer_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("limits: {turns: 9}\nevaluation: {url: 'http://a', limits: {turns: 7}}\n")
    assert load_evaluation(url="http://a").agent.limits.turns == 10
    assert load_evaluation(str(config)).agent.limits.turns == 7
    assert load_evaluation(str(config), limits={"turns": 5}).agent.limits.turns == 5
    monkeypatch.setenv("DEEPEYES_LIMITS_TURNS", "3")
    assert load_evaluation(str(config), limits={"turns": 5}).agent.limits.turns == 3


def test_a_renamed_key_works_in_an_evaluation_too(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("evaluation: {url: 'http://a', limits: {engine_patience: 5}}")
    with pytest.warns(FutureWarning, match=r"use limits\.turn_timeout"):
        assert load_evaluation(str(config)).agent.limits.turn_timeout == 5
    with pytest.warns(FutureWarning, match=r"use limits\.turn_timeout"):
        assert (
            load_evaluation(url="http://a", limits={"engine_patience": 6}).agent.limits.turn_timeout
            == 6
        )
