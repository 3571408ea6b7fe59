"""Settings of the OpenAI-compatible server."""

from __future__ import annotations

from typing import Any

import pytest

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.hosts.openai import OpenAISettings, load_openai_settings


def test_the_version_path_is_added_where_there_is_none() -> None:
    settings = OpenAISettings(url="http://a:8000, https://b/api/v3/")
    assert settings.servers == ("http://a:8000/v1", "https://b/api/v3")


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPEYES_OPENAI_URL", "http://there")
    monkeypatch.setenv("DEEPEYES_OPENAI_MAX_TOKENS", "12")
    settings = load_openai_settings(url="http://here", temperature=0.5)
    assert settings.servers == ("http://there/v1",)
    assert (settings.max_tokens, settings.temperature) == (12, 0.5)


def test_options_of_a_command_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPEYES_OPENAI_URL", "http://there")
    monkeypatch.setenv("DEEPEYES_OPENAI_MAX_TOKENS", "12")
    settings = load_openai_settings(values_win=True, url="http://here")
    assert settings.servers == ("http://here/v1",)
    assert settings.max_tokens == 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"url \(or DEEPEYES_OPENAI_URL\): Field required"),
        ({"url": "localhost:8000"}, "'localhost:8000' is not an http:// or https:// URL"),
        ({"url": " , "}, "no URL given"),
        ({"url": "http://a", "temprature": 1}, "temprature: Extra inputs are not permitted"),
        ({"url": "http://a", "profile": "tgi"}, "profile .*'generic', 'vllm' or 'sglang'"),
    ],
)
def test_what_is_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("DEEPEYES_OPENAI_URL", raising=False)
    with pytest.raises(SettingsError, match=message):
        load_openai_settings(**values)


@pytest.mark.parametrize(
    ("profile", "prefill", "sent"),
    [
        ("generic", None, False),
        ("vllm", None, True),
        ("sglang", None, True),
        ("vllm", False, False),
    ],
)
def test_who_gets_the_opening_of_a_turn(profile: str, prefill: bool | None, sent: bool) -> None:
    settings = load_openai_settings(url="http://a", profile=profile, prefill=prefill)
    assert settings.sends_prefill is sent
