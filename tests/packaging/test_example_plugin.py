"""A third party's package, really installed: found, listed, played and scored."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.conftest import REPOSITORY, FreshEnvironment

PROJECT = REPOSITORY / "tests" / "example_plugin"


@pytest.fixture(scope="module")
def with_example(
    make_environment: Callable[[], FreshEnvironment], wheel: Path, example_wheel: Path
) -> FreshEnvironment:
    environment = make_environment()
    environment.pip("install", "--quiet", "--no-deps", wheel, example_wheel)
    environment.add_dependencies()
    return environment


def test_the_plugin_imports_nothing_but_us_and_the_standard_library() -> None:
    source = (PROJECT / "example_deepeyes_plugin" / "__init__.py").read_text()
    modules = {
        node.module.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert modules == {"__future__", "collections", "functools", "typing", "deepeyes_plugins"}


def test_the_command_lists_what_the_plugin_registered(with_example: FreshEnvironment) -> None:
    listed = json.loads(with_example.run("deepeyes", "plugins", "--json"))

    assert [(row["kind"], row["name"]) for row in listed if row["owner"] == "example"] == [
        ("tool", "measure_image"),
        ("environment", "measuring"),
        ("reward", "picture-size"),
        ("formatter", "question_and_answer"),
        ("search provider", "paper_sizes"),
    ]


def test_its_search_provider_answers(with_example: FreshEnvironment) -> None:
    query = ("search", "query", "How large is A4?", "--provider", "paper_sizes", "--json")
    assert json.loads(with_example.run("deepeyes", *query))["results"] == [
        {"title": "A4", "link": "", "snippet": "210 x 297 mm", "date": "", "score": None}
    ]


def test_an_episode_is_played_and_scored_from_the_agent_yaml_alone(
    with_example: FreshEnvironment,
) -> None:
    agent_yaml = PROJECT / "agent.yaml"

    episode = json.loads(with_example.run("python", PROJECT / "play.py", agent_yaml))

    first, second, last = episode["trajectory"]["turns"]
    assert first["error"] == "'image' is a number from 1 to 1"
    assert "60 x 40 pixels" in second["observation"][0]["text"]
    assert last["action"] == "answer"
    assert episode["trajectory"]["environment"] == "measuring"
    assert episode["parts"] == {"right": 1.0, "cost": 0.5}
    assert episode["score"] == 0.5
