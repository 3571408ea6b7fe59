"""What tools lack is said before a run begins, and only where they are in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepeyes_plugins.environments.preflight import check_tools
from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.search.corpus import Corpus
from deepeyes_plugins.search.image_cache import ImageCacheWriter
from deepeyes_plugins.search.index import build
from deepeyes_plugins.settings import AgentSettings

KEY_VARIABLE = "DEEPEYES_TEST_PREFLIGHT_KEY"
EXA = {"provider": "exa", "providers": {"exa": {"key_env": KEY_VARIABLE}}}
LENS = {
    "image_provider": "serpapi_lens",
    "image_providers": {"serpapi_lens": {"key_env": KEY_VARIABLE}},
}

PLAYED = (("none", "x"), ("deepeyes_v2", "perception"))

LACKING: dict[str, tuple[dict[str, Any], str]] = {
    "key": (EXA, rf"the tool search cannot work: exa: .* {KEY_VARIABLE} is not set"),
    "key of a fallback": (
        {"provider": "searxng", "providers": EXA["providers"], "fallbacks": ["exa"]}
        | {"providers": {**EXA["providers"], "searxng": {"url": "http://127.0.0.1:9"}}},
        KEY_VARIABLE,
    ),
    "key of the image provider": (LENS, rf"tool image_search .* {KEY_VARIABLE} is not set"),
    "index": ({"provider": "local"}, r"search\.providers\.local\.index"),
    "index that is named": (
        {"providers": {"local": {"index": "/nowhere/index"}}},
        "/nowhere/index: no index",
    ),
    "image cache": ({"image_provider": "cache"}, r"search\.image_providers\.cache\.path"),
    "image cache that is named": (
        {"image_providers": {"cache": {"path": "/nowhere/images.sqlite"}}},
        "/nowhere/images.sqlite: no such file",
    ),
    "recording": (
        {"provider": "replay", "providers": {"replay": {"path": "/nowhere/run.jsonl"}}},
        "/nowhere/run.jsonl",
    ),
    "option": ({"provider": "google_cse"}, r"search\.providers\.google_cse\.engine_id"),
    "filter": ({**EXA, "language": "de"}, "exa has no filter for language"),
    "provider": ({"provider": "serpr"}, "Did you mean 'serper'"),
}

NOT_NEEDED: dict[str, tuple[dict[str, Any], str]] = {
    "nobody is chosen": ({"search": {"count": 5}}, "deepeyes_v2"),
    "an environment without search": ({"search": EXA | LENS}, "none"),
    "the environment of DeepEyes V1": ({"search": EXA | LENS}, "visual_toolbox_v2"),
    "tools without search": (
        {"search": EXA | LENS, "tools": {"deepeyes_v2": ["python"]}},
        "deepeyes_v2",
    ),
    "one of two tools": (
        {"search": LENS, "tools": {"deepeyes_v2": ["python", "search"]}},
        "deepeyes_v2",
    ),
    "policy": ({"search": {**EXA, "policy": {"perception": False}}}, "deepeyes_v2"),
    "a service": ({"search": {**EXA, **LENS, "url": "http://127.0.0.1:9"}}, "deepeyes_v2"),
}


@pytest.mark.parametrize("lack", LACKING)
def test_what_a_chosen_provider_lacks_is_named(lack: str) -> None:
    search, told = LACKING[lack]
    with pytest.raises(SettingsError, match=told):
        check_tools(AgentSettings(search=search), PLAYED)


@pytest.mark.parametrize("case", NOT_NEEDED)
def test_nothing_is_asked_of_what_is_not_in_use(case: str) -> None:
    settings, environment = NOT_NEEDED[case]
    check_tools(AgentSettings(**settings), [(environment, "perception")])


def test_who_has_what_it_needs_passes_and_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens at the engine's address."""
    monkeypatch.setenv(KEY_VARIABLE, "key")
    (tmp_path / "corpus.jsonl").write_text('{"id": "1", "text": "The red panda."}\n')
    build(Corpus([tmp_path / "corpus.jsonl"], 1000), tmp_path / "index")
    with ImageCacheWriter(tmp_path / "images.sqlite") as writer:
        writer.answer("q1", [])
    engine = {"key_env": KEY_VARIABLE, "url": "http://127.0.0.1:9"}
    index = {"index": tmp_path / "index"}
    search = {
        "fallbacks": ["exa"],
        "providers": {"local": index, "exa": engine},
        "image_fallbacks": ["serpapi_lens"],
        "image_providers": {
            "cache": {"path": tmp_path / "images.sqlite"},
            "serpapi_lens": engine,
        },
    }
    check_tools(AgentSettings(search=search), PLAYED)  # type: ignore[arg-type]

    search["providers"] = {"local": {**index, "method": "dense"}, "exa": engine}
    with pytest.raises(SettingsError, match="the index has no vectors"):
        check_tools(AgentSettings(search=search), PLAYED)  # type: ignore[arg-type]
