"""agent.yaml and the environment variables that override it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.settings import AgentSettings, load_settings

RECIPES = Path(__file__).parents[2] / "recipes"
WriteYaml = Callable[[str], Path]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("DEEPEYES_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path) -> WriteYaml:
    def write_yaml(text: str) -> Path:
        path = tmp_path / "agent.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_yaml


class TestFile:
    def test_values(self, write: WriteYaml) -> None:
        settings = load_settings(
            write(
                "environment: none\n"
                "limits: {turns: 3, wall_time: 60}\n"
                "sandbox: {url: 'http://sandbox:8000'}\n"
                "tools: {deepeyes_v2: [python]}\n"
                "rewards: {sources: {my_data: perception}}\n"
                "trajectories: logs\n"
            )
        )
        assert settings.environment == "none"
        assert (settings.limits.turns, settings.limits.wall_time) == (3, 60)
        assert settings.sandbox.url == "http://sandbox:8000"
        assert settings.tools == {"deepeyes_v2": ["python"]}
        assert settings.rewards.sources == {"my_data": "perception"}
        assert settings.trajectories == Path("logs")

    @pytest.mark.parametrize("text", ["", "# nothing yet\n", "limits:\n#  turns: 3\n", "{}"])
    def test_what_is_not_said_is_the_default(self, write: WriteYaml, text: str) -> None:
        assert load_settings(write(text)) == load_settings() == AgentSettings()

    def test_the_variable_names_the_file(
        self, write: WriteYaml, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DEEPEYES_AGENT_CONFIG", str(write("environment: none")))
        assert load_settings().environment == "none"

    def test_an_argument_comes_before_the_variable(
        self, write: WriteYaml, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DEEPEYES_AGENT_CONFIG", "/nowhere.yaml")
        assert load_settings(write("environment: none")).environment == "none"

    def test_settings_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            load_settings().environment = "none"  # type: ignore[misc]


class TestRecipe:
    """recipes/agent.yaml, which users edit."""

    def test_what_is_commented_out_works_as_soon_as_it_is_not(self, write: WriteYaml) -> None:
        recipe = (RECIPES / "agent.yaml").read_text(encoding="utf-8")
        settings = load_settings(
            write(re.sub(r'^( *)# ( *(?:- )?[a-z_0-9"]+:(?: |$))', r"\1\2", recipe, flags=re.M))
        )

        assert settings.tools == {"deepeyes_v2": ["python"]}
        assert settings.sandbox.url == "http://sandbox-host:8080"
        assert settings.judge.endpoints[0].url == "http://judge-host:18901/v1"
        assert settings.rewards.sources == {"my_source": "perception"}
        assert settings.search.policy == {"perception": False}
        assert settings.evaluation["url"] == "http://model-host:8000"
        assert settings.trajectories == Path("runs/rl_7b/trajectories")


class TestMistakes:
    """The message names the file, the key and the reason."""

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("limit: {turns: 3}", "unknown key 'limit'. Did you mean 'limits'? Known: environment"),
            ("1: 2", "unknown key 1. Known:"),
            ("_env_file: x", "unknown key '_env_file'"),
            ("limits: {turn: 3}", "limits.turn: unknown key. Did you mean 'turns'? Known: turns,"),
            ("sandbox: {url: x, tokn: y}", "sandbox.tokn: unknown key. Did you mean 'token_env'?"),
            ("judge: {endpoints: [{ur: x}]}", "endpoints.0.ur: unknown key. Did you mean 'url'?"),
            ("rewards: {perception: {acuracy: 1}}", "Did you mean 'accuracy'?"),
            ("limits: 3", "limits: expected keys and values"),
            ("judge: {endpoints: {url: x}}", "judge.endpoints: expected a list"),
            ("limits: {turns: 0}", "limits.turns: Input should be greater than or equal to 1"),
            ("limits: {turns: many}", "limits.turns: Input should be a valid integer"),
            ("tools: {deepeyes_v2: python}", "tools.deepeyes_v2: expected a list"),
            ("limits: {turns: 0, images: -1}", "; limits.images: "),
            ("- a", "expected keys and values, found list"),
            ("just text", "expected keys and values, found str"),
            ("limits: {}\nsearch: {}\nlimits: {}", "duplicate key 'limits' in line 1 and line"),
            ("limits:\n  turns: 3\n  turns: 4", "duplicate key 'turns' in line 2 and line 3"),
            ("limits: {turns: 3, 'turns': 4}", "duplicate key 'turns' in line 1 and line 1"),
            (
                "judge:\n  endpoints:\n  - url: x\n    url: y",
                "duplicate key 'url' in line 3",
            ),
            ("a: [", "cannot be read as YAML"),
            ("!!python/object:os.system {}", "cannot be read as YAML"),
        ],
    )
    def test_in_the_file(self, write: WriteYaml, text: str, told: str) -> None:
        path = write(text)
        with pytest.raises(SettingsError) as error:
            load_settings(path)
        assert str(error.value).startswith(f"{path}: ")
        assert told in str(error.value)

    def test_a_merge_may_be_overridden(self, write: WriteYaml) -> None:
        text = (
            "plugins:\n  one: &one {a: 1, b: 2}\n  two: {<<: *one, a: 3}\n  three: {<<: *one, b: 4}"
        )
        assert load_settings(write(text)).plugins == {
            "one": {"a": 1, "b": 2},
            "two": {"a": 3, "b": 2},
            "three": {"a": 1, "b": 4},
        }

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"agent\.yaml: cannot be read"):
            load_settings(tmp_path / "agent.yaml")

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "agent.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(SettingsError, match=r"agent\.yaml: cannot be read"):
            load_settings(tmp_path / "agent.yaml")

    def test_in_a_variable(self, write: WriteYaml, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DEEPEYES_LIMITS_TURNS", "many")
        with pytest.raises(SettingsError, match=r"limits.turns \(set by DEEPEYES_LIMITS_TURNS\)"):
            load_settings(write(""))

    def test_an_unknown_key_in_a_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DEEPEYES_LIMITS_TURN", "3")
        with pytest.raises(SettingsError, match=r"DEEPEYES_LIMITS_TURN\): unknown key"):
            load_settings()

    @pytest.mark.parametrize("field", ["tools", "sandbox"])
    def test_a_variable_that_is_no_json(self, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
        monkeypatch.setenv(f"DEEPEYES_{field.upper()}", "http://sandbox:8000")
        with pytest.raises(SettingsError, match=f'"{field}".* to JSON, or one key'):
            load_settings()


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        ("failures", "smallest_group", "min_group_size"),
        ("limits", "engine_patience", "turn_timeout"),
    ],
)
class TestRenamedKeys:
    """The old key works for one version and names the new one."""

    def test_in_the_file(self, write: WriteYaml, section: str, old: str, new: str) -> None:
        path = write(f"{section}: {{{old}: 7}}")
        with pytest.warns(FutureWarning, match=rf"{section}\.{old} .*: use {section}\.{new}$"):
            settings = load_settings(path)
        assert getattr(getattr(settings, section), new) == 7

    def test_in_a_variable(
        self, monkeypatch: pytest.MonkeyPatch, section: str, old: str, new: str
    ) -> None:
        monkeypatch.setenv(f"DEEPEYES_{section}_{old}".upper(), "7")
        with pytest.warns(FutureWarning, match=f"use {section}.{new}"):
            settings = load_settings()
        assert getattr(getattr(settings, section), new) == 7

    def test_not_beside_the_new_one(
        self, write: WriteYaml, section: str, old: str, new: str
    ) -> None:
        path = write(f"{section}: {{{old}: 7, {new}: 8}}")
        with pytest.raises(SettingsError, match=f"{section}.{new} and both are given: remove"):
            load_settings(path)

    def test_a_wrong_value_is_told_under_the_new_name(
        self, write: WriteYaml, section: str, old: str, new: str
    ) -> None:
        path = write(f"{section}: {{{old}: many}}")
        with pytest.warns(FutureWarning), pytest.raises(SettingsError, match=f"{section}.{new}: "):
            load_settings(path)


class TestVariables:
    def test_one_value_of_a_section(
        self, write: WriteYaml, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The variable wins; its neighbours in the file stay."""
        monkeypatch.setenv("DEEPEYES_SANDBOX_URL", "http://other:8000")
        monkeypatch.setenv("DEEPEYES_LIMITS_TURNS", "4")
        settings = load_settings(
            write("sandbox: {url: 'http://file:1', cell_timeout: 5}\nlimits: {turns: 9, images: 2}")
        )
        assert settings.sandbox.url == "http://other:8000"
        assert settings.sandbox.cell_timeout == 5
        assert (settings.limits.turns, settings.limits.images) == (4, 2)

    def test_names_of_several_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DEEPEYES_LIMITS_WALL_TIME", "12.5")
        assert load_settings().limits.wall_time == 12.5

    def test_top_level_values(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DEEPEYES_ENVIRONMENT", "none")
        monkeypatch.setenv("DEEPEYES_TOOLS", '{"deepeyes_v2": ["python"]}')
        monkeypatch.setenv("DEEPEYES_TRAJECTORIES", "logs")
        settings = load_settings()
        assert settings.environment == "none"
        assert settings.tools == {"deepeyes_v2": ["python"]}
        assert settings.trajectories == Path("logs")

    @pytest.mark.parametrize(
        "name",
        [
            "DEEPEYES_ACTIVATION",
            "DEEPEYES_OPENAI_URL",
            "DEEPEYES_SFT_BAD_ROWS",
            "DEEPEYES_TOKEN_SANDBOX",
            "DEEPEYES_HOME",
        ],
    )
    def test_variables_of_other_parts_are_ignored(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv(name, "anything")
        assert load_settings() == AgentSettings()
