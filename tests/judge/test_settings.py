"""Settings of the judge in agent.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.judge.settings import BASE_VARIABLE, JudgeSettings
from deepeyes_plugins.settings import load_settings


def load(folder: Path, text: str) -> JudgeSettings:
    path = folder / "agent.yaml"
    path.write_text(text)
    return load_settings(path).judge


def test_endpoints_and_how_they_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPEYES_JUDGE_OUTAGE", "mark")
    monkeypatch.setenv(BASE_VARIABLE, "http://not-this-one")
    settings = load(
        tmp_path,
        """
        judge:
          endpoints:
            - url: http://one:8000
              model: qwen
              weight: 3
            - url: https://two/api/v2/
              api_key_env: TWO_KEY
          equivalence: {tries: 2}
          concurrency: 128
        """,
    )
    assert [server.url for server in settings.servers()] == [
        "http://one:8000/v1",
        "https://two/api/v2",
    ]
    assert settings.outage == "mark"
    assert settings.prompt("equivalence").tries == 2
    assert settings.prompt("equivalence").temperature == 0.5
    assert settings.prompt("answer").temperature == 0.3
    assert settings.concurrency == 128


def test_the_authors_variable_names_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BASE_VARIABLE, " http://judge:18901 ")
    (server,) = JudgeSettings().servers()
    assert (server.url, server.model) == ("http://judge:18901/v1", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("judge: {endpoints: [{url: localhost}]}", r"judge\.endpoints\.0\.url: .*'localhost'"),
        ("judge: {endpoint: []}", r"judge\.endpoint: unknown key"),
        ("judge: {outage: ignore}", "'wait' or 'mark'"),
        ("judge: {prompts: /nowhere}", r"/nowhere is not a folder with answer\.md or equiv"),
        ("judge: {endpoints: [{url: 'http://a', weight: 0}]}", "greater than 0"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(tmp_path, text)
