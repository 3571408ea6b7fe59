"""One settings file for all hosts: ``agent.yaml``.

``DEEPEYES_…`` environment variables override it (``DEEPEYES_SANDBOX_URL`` sets ``sandbox.url``,
``DEEPEYES_LIMITS_TURNS`` sets ``limits.turns``). Secrets are given by the NAME of a variable.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariableError

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.judge.settings import JudgeSettings
from deepeyes_plugins.protocol.coordinates import Coordinates
from deepeyes_plugins.rewards.settings import RewardSettings
from deepeyes_plugins.rollout.contracts import Limits
from deepeyes_plugins.rollout.failures import FailureSettings
from deepeyes_plugins.sandbox.settings import SandboxSettings
from deepeyes_plugins.search.settings import SearchSettings

SETTINGS_VARIABLE = "DEEPEYES_AGENT_CONFIG"
"""Environment variable with the path of agent.yaml, for hosts that cannot pass one."""


_MERGE_TAG = "tag:yaml.org,2002:merge"
_REASONS = {
    "dict_type": "expected keys and values",
    "list_type": "expected a list",
    "model_type": "expected keys and values",
    "tuple_type": "expected a list",
}
"""Messages in terms of YAML, by type of validation error."""


class LayeredSettings(BaseSettings):
    """Settings from code or a file, overridden by environment variables."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Give environment variables precedence."""
        return env_settings, init_settings


class AgentSettings(LayeredSettings):
    """Settings of the agent core."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        env_prefix="DEEPEYES_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
    )

    environment: str = Field("deepeyes_v2", description="Environment of tasks that name none.")
    tools: dict[str, list[str]] = Field(
        default_factory=dict,
        description="Tools by environment, instead of the environment's default.",
    )
    coordinates: Coordinates = Field(
        Coordinates.PIXELS,
        description="Unit of the model's boxes: pixels of the original image (DeepEyes, "
        "Qwen2.5-VL), or thousandths of its sides (Qwen3-VL).",
    )
    limits: Limits = Field(default_factory=Limits, description="When a trajectory ends.")
    failures: FailureSettings = Field(
        default_factory=FailureSettings,
        description="Training: trajectories that end with an infrastructure error.",
    )
    sandbox: SandboxSettings = Field(
        default_factory=SandboxSettings, description="The code sandbox."
    )
    search: SearchSettings = Field(
        default_factory=SearchSettings, description="Text and image search."
    )
    rewards: RewardSettings = Field(default_factory=RewardSettings, description="Rewards.")
    judge: JudgeSettings = Field(default_factory=JudgeSettings, description="The LLM judge.")
    trajectories: Path | None = Field(
        None, description="Folder for trajectory logs (JSON lines); none are written without it."
    )
    evaluation: dict[str, Any] = Field(
        default_factory=dict,
        description="What evaluations change: keys of this file, of the model's server and of the "
        "prompt (docs/evaluation.md). Defaults: limits.turns 10, sandbox.cell_timeout 60, "
        "temperature 0, max_tokens 20480, url http://127.0.0.1:8000.",
    )
    plugins: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Settings of third-party plugins, by plugin name."
    )


def load_settings(
    path: str | Path | None = None,
    arrange: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> AgentSettings:
    """Read the settings.

    Args:
        path: An agent.yaml; by default the file named by ``DEEPEYES_AGENT_CONFIG``; without
            either, the built-in defaults.
        arrange: Transforms the file's keys and values before validation and before environment
            variables override them.

    Raises:
        SettingsError: The file cannot be read or a value is wrong; the message names file and key.
    """
    path = path or os.environ.get(SETTINGS_VARIABLE)
    where = path or "settings from the environment"
    try:
        values = _read(Path(path)) if path else {}
        return AgentSettings(**(arrange(values) if arrange is not None else values))
    except ValidationError as error:
        reasons = "; ".join(map(_reason, error.errors()))
        raise SettingsError(f"{where}: {reasons}") from error
    except UnreadableVariableError as error:
        raise SettingsError(
            f"settings from the environment: {error}. Set DEEPEYES_<FIELD> to JSON, or one key of "
            "it with DEEPEYES_<FIELD>_<KEY>."
        ) from error


class DuplicateKeyError(yaml.YAMLError):
    """A key occurs twice in one mapping; the message names it and both lines."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys, of which PyYAML silently keeps the last.

    Keys from a merge (``<<``) may be overridden.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping.

        Raises:
            DuplicateKeyError: A key occurs twice.
        """
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        found: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE_TAG:
                continue
            first = found.setdefault((key.tag, key.value), key)
            if first is not key:
                raise DuplicateKeyError(
                    f"duplicate key {key.value!r} in line {first.start_mark.line + 1} and line "
                    f"{key.start_mark.line + 1}: merge them under one key"
                )
        return node


def load_yaml(text: str) -> Any:
    """Read a YAML document.

    Raises:
        DuplicateKeyError: A key occurs twice in one mapping.
        yaml.YAMLError: The text is not valid YAML.
    """
    try:
        return yaml.load(text, _UniqueKeyLoader)
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error


def _read(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file; a key without a value counts as absent."""
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except DuplicateKeyError as error:
        raise SettingsError(f"{path}: {error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: cannot be read as YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected keys and values, found {type(values).__name__}")
    for key in values:
        if key not in AgentSettings.model_fields:
            raise SettingsError(f"{path}: unknown key {key!r}.{_instead((key,))}")
    return {key: value for key, value in values.items() if value is not None}


def _reason(error: ErrorDetails) -> str:
    """Describe a validation error: the setting, its environment variable if set, the reason."""
    place = error["loc"]
    variable = "_".join(["DEEPEYES", *map(str, place[:2])]).upper()
    source = f" (set by {variable})" if variable in os.environ else ""
    if error["type"] == "extra_forbidden":
        reason = f"unknown key.{_instead(place)}"
    else:
        reason = _REASONS.get(error["type"], error["msg"].removeprefix("Value error, "))
    return f"{'.'.join(map(str, place))}{source}: {reason}"


def _instead(place: Sequence[str | int]) -> str:
    """Return a hint with the known keys in place of an unknown one."""
    known = list(_keys(AgentSettings, place[:-1]))
    near = difflib.get_close_matches(str(place[-1]), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(known)}." if known else ""


def _keys(annotation: object, place: Sequence[str | int]) -> Iterable[str]:
    """Return the keys of the model at a path below a type; none if there is no model."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        if not place:
            return fields
        field = fields.get(str(place[0]))
        return _keys(field.annotation, place[1:]) if field else ()
    # A list's or dictionary's own place is an index or a key; a union has none.
    below = place if get_origin(annotation) in (Union, UnionType) else place[1:]
    return next(filter(None, (_keys(inner, below) for inner in get_args(annotation))), ())
