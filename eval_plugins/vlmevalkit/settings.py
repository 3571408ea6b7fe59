"""Evaluation settings: the agent, the model's server and the prompt.

The defaults are those of the published evaluation. Two layers override them, with the same keys:

1. agent.yaml, where a key in the section ``evaluation`` replaces the same key outside of it,
2. the run: keywords of the model class (``--config`` file) or environment variables
   (``DEEPEYES_…``, ``DEEPEYES_OPENAI_…``, ``DEEPEYES_EVAL_…``).
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.hosts.openai import OpenAISettings, load_openai_settings
from deepeyes_plugins.protocol.prompts import deepeyes_v2_prompt
from deepeyes_plugins.search.availability import EVALUATION, SEARCH_TOOLS, search_is_on
from deepeyes_plugins.settings import AgentSettings, LayeredSettings, load_settings

AGENT_DEFAULTS: Mapping[str, Any] = {"limits": {"turns": 10}, "sandbox": {"cell_timeout": 60.0}}
"""Agent limits of the published evaluation: 10 turns, 60 s per cell (model class of the evaluation
in Visual-Agent/DeepEyesV2)."""
SERVER_DEFAULTS: Mapping[str, Any] = {
    "url": "http://127.0.0.1:8000",
    "temperature": 0.0,
    "max_tokens": 20_480,
}
"""``vllm serve`` on this machine; sampling of the published evaluation (same source, and its issue
30)."""

_NOT_HERE = ("evaluation", "failures", "rewards", "plugins")
"""Sections of agent.yaml that an evaluation cannot override."""


class PromptSettings(LayeredSettings):
    """Settings of the system prompt; by default it is the environment's own."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="DEEPEYES_EVAL_")

    system_prompt: str | None = Field(
        None, description="System prompt; with an empty text no system message is sent."
    )
    system_prompt_file: Path | None = Field(
        None,
        description="UTF-8 file with the system prompt, which is sent unchanged. For a released "
        "checkpoint use the output of `deepeyes data prompt` on its training data.",
    )

    def resolve(self, agent: AgentSettings, benchmark: str = "") -> str | None:
        """Return the system prompt for ``agent``; ``None`` for none.

        Args:
            agent: The agent's settings.
            benchmark: Name of the dataset; search tools are omitted if search is off for it.

        Raises:
            SettingsError: Both are given, the file cannot be read, or there is no prompt for the
                agent's tools.
        """
        if self.system_prompt_file is not None:
            if self.system_prompt is not None:
                raise SettingsError("give system_prompt or system_prompt_file, not both")
            try:
                # Bytes, not text mode: white space and line ends are part of the trained prompt.
                return self.system_prompt_file.read_bytes().decode("utf-8") or None
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"system_prompt_file cannot be read: {error}") from error
        if self.system_prompt is not None:
            return self.system_prompt or None
        if agent.environment != "deepeyes_v2":
            return None
        default = ["python", *SEARCH_TOOLS] if benchmark else ["python"]
        tools = agent.tools.get("deepeyes_v2", default)
        if not search_is_on(benchmark, agent.search.policy):
            tools = [tool for tool in tools if tool not in SEARCH_TOOLS]
        try:
            return deepeyes_v2_prompt(tools, agent.coordinates)
        except ValueError as error:
            raise SettingsError(f"{error} (system_prompt_file)") from error


@dataclass(frozen=True)
class EvaluationSettings:
    """All settings of an evaluation.

    Attributes:
        agent: Agent settings, including the search policy of the benchmarks.
        server: Settings of the model's servers.
        prompt: Settings of the system prompt.
    """

    agent: AgentSettings
    server: OpenAISettings
    prompt: PromptSettings


def load_evaluation(
    agent_config: str | None = None, attempts: int | None = None, **keywords: Any
) -> EvaluationSettings:
    """Read the settings of an evaluation.

    Args:
        agent_config: Path of agent.yaml; by default what ``DEEPEYES_AGENT_CONFIG`` names.
        attempts: Maximum number of attempts per request, unless a setting gives ``retries``.
        **keywords: Keys of agent.yaml (sections may be partial), of :class:`OpenAISettings` and of
            :class:`PromptSettings`.

    Raises:
        SettingsError: A setting is wrong; the message names it.
    """
    # None means that a keyword is not given.
    keywords = {key: value for key, value in keywords.items() if value is not None}
    _check(keywords, "the model's keywords")
    for key, value in keywords.items():
        _warn_if_given_twice(key, value)

    def arrange(values: dict[str, Any]) -> dict[str, Any]:
        section = values.get("evaluation") or {}
        if not isinstance(section, dict):
            raise SettingsError("evaluation: expected keys and values")
        merged = _merged(AGENT_DEFAULTS, values)
        for layer in (section, keywords):
            merged = _merged(merged, _only(layer, AgentSettings.model_fields))
        return merged

    agent = load_settings(agent_config, arrange)
    _check(agent.evaluation, "evaluation in agent.yaml")
    given = {**agent.evaluation, **keywords}
    sampling: dict[str, Any] = {**SERVER_DEFAULTS}
    if attempts is not None:
        sampling["retries"] = max(0, attempts - 1)
    server = load_openai_settings(**sampling | _only(given, OpenAISettings.model_fields))
    try:
        prompt = PromptSettings(**_only(given, PromptSettings.model_fields))
    except ValidationError as error:
        raise SettingsError(f"system prompt: {error}") from error
    return EvaluationSettings(_with_search_policy(agent), server, prompt)


def _with_search_policy(agent: AgentSettings) -> AgentSettings:
    """Append the published search policy of evaluations to the settings' own rules."""
    policy = agent.search.policy | {
        pattern: on for pattern, on in EVALUATION.items() if pattern not in agent.search.policy
    }
    search = agent.search.model_copy(update={"policy": policy})
    return agent.model_copy(update={"search": search})


def _check(values: Mapping[str, Any], where: str) -> None:
    """Reject unknown keys, which are not validated anywhere else."""
    known = {
        *(set(AgentSettings.model_fields) - set(_NOT_HERE)),
        *OpenAISettings.model_fields,
        *PromptSettings.model_fields,
    }
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise SettingsError(
                f"{where}: unknown key {key!r}.{hint} Known: {', '.join(sorted(known))}."
            )


def _warn_if_given_twice(key: str, value: object) -> None:
    """Warn about environment variables that override a keyword of the model by another value."""
    models = (AgentSettings, OpenAISettings, PromptSettings)
    prefix = next(m.model_config["env_prefix"] for m in models if key in m.model_fields)
    inner = value if isinstance(value, Mapping) else {}
    for name, given in {"": value, **{f"_{below}": at for below, at in inner.items()}}.items():
        variable = f"{prefix}{key}{name}".upper()
        if os.environ.get(variable, str(given)) != str(given):
            warnings.warn(
                f"{variable} and the model's keyword {key!r} are both given. The variable counts; "
                "the next version rejects this: remove one of them.",
                FutureWarning,
                stacklevel=3,
            )


def _only(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings recursively; ``above`` overrides ``below``."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged
