"""Settings of the evaluation that belong neither to the agent nor to the model's server."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from deepeyes_plugins.protocol.prompts import deepeyes_v2_prompt
from deepeyes_plugins.search.policy import EVALUATION, SEARCH_TOOLS, search_is_on
from deepeyes_plugins.settings import AgentSettings, LayeredSettings, SettingsError


def for_evaluation(agent: AgentSettings) -> AgentSettings:
    """Add the published search policy of evaluations behind the settings' own rules."""
    policy = agent.search.policy | {
        pattern: on for pattern, on in EVALUATION.items() if pattern not in agent.search.policy
    }
    search = agent.search.model_copy(update={"policy": policy})
    return agent.model_copy(update={"search": search})


class PromptSettings(LayeredSettings):
    """The system prompt; without either setting the environment's own."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="DEEPEYES_EVAL_")

    system_prompt: str | None = Field(
        None, description="System prompt; an empty one sends none at all."
    )
    system_prompt_file: Path | None = Field(
        None,
        description="UTF-8 file with the system prompt, which is sent as it stands there. For a "
        "released checkpoint: what `deepeyes data prompt` writes of its training data.",
    )

    def resolve(self, agent: AgentSettings, benchmark: str = "") -> str | None:
        """The system prompt for ``agent``; ``None`` for none.

        Args:
            agent: The agent's settings.
            benchmark: Name of the dataset: where search is off, no search tool is described.

        Raises:
            SettingsError: Both are given, the file cannot be read, or there is no prompt for the
                agent's tools.
        """
        if self.system_prompt_file is not None:
            if self.system_prompt is not None:
                raise SettingsError("give system_prompt or system_prompt_file, not both")
            try:
                # As it stands there: a checkpoint was trained with white space and line ends, too.
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
