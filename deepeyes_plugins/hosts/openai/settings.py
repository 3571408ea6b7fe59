"""Settings of the policy over an OpenAI-compatible server."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import PydanticBaseSettingsSource, SettingsConfigDict

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.remote.urls import is_http_url, versioned
from deepeyes_plugins.settings import LayeredSettings

ENVIRONMENT_PREFIX = "DEEPEYES_OPENAI_"


class OpenAISettings(LayeredSettings, RemoteSettings):
    """Which servers answer, and how they are asked.

    ``DEEPEYES_OPENAI_…`` environment variables win over what the code or a file says.
    """

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENVIRONMENT_PREFIX, protected_namespaces=()
    )

    url: str = Field(
        description="Base URL of the server, with its version path (http://host:8000/v1; /v1 is "
        "added where a URL has no path). Several, separated by commas, share the conversations."
    )
    model: str | None = Field(
        None, description="Model to ask for. Unset: the one model that GET /models lists."
    )
    api_key_env: str = Field(
        "DEEPEYES_OPENAI_API_KEY",
        description="Name of the environment variable that holds the API key. No key is sent when "
        "the variable is not set.",
    )
    profile: Literal["generic", "vllm", "sglang"] = Field(
        "generic",
        description="Kind of server. 'generic' sends standard fields only; the others also ask "
        "for kept stop strings and send each turn's opening <think> ahead.",
    )
    prefill: bool | None = Field(
        None,
        description="Send the dialect's opening text as the start of the assistant's message. "
        "Unset: as the profile can (vllm and sglang yes, generic no).",
    )
    send_stop: bool = Field(
        True,
        description="Send the stop strings. Switch it off for a server that fails on them "
        "(transformers serve 5.5 does, with vision-language models): turns are then cut at their "
        "closing tag after they were generated.",
    )
    temperature: float = Field(0.0, ge=0, description="Sampling temperature; 0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling; unset: not sent.")
    seed: int | None = Field(None, description="Seed of the sampling; unset: not sent.")
    max_tokens: int | None = Field(
        8192, ge=1, description="Generated tokens per turn at most; null leaves it to the server."
    )
    max_total_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens of a whole conversation at most (prompt, turns and observations, as "
        "the server counts them). Unset: the server's context length is the limit.",
    )
    max_pixels: int | None = Field(
        None,
        ge=1024,
        description="Pixels of an image that is sent at most; larger ones are scaled down for the "
        "model, never for its tools. Unset: as they are; most servers scale them themselves.",
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields for every request, for instance top_k for vLLM.",
    )
    timeout: float = Field(600.0, gt=0, description="Seconds that one request may take.")
    concurrency: int = Field(
        256, ge=1, description="Requests to one server at a time; more wait their turn."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if not _split(value):
            raise ValueError("no URL given")
        for url in _split(value):
            if not is_http_url(url):
                raise ValueError(f"{url!r} is not an http:// or https:// URL")
        return value

    @property
    def servers(self) -> tuple[str, ...]:
        """The base URLs, each with its version path and without a trailing slash."""
        return tuple(map(versioned, _split(self.url)))

    @property
    def sends_prefill(self) -> bool:
        """Whether the opening of a turn goes over the wire."""
        return self.profile != "generic" if self.prefill is None else self.prefill


class _CommandLineSettings(OpenAISettings):
    """Settings from the options of a command, which win over the environment."""

    @classmethod
    def settings_customise_sources(
        cls, *arguments: Any, **sources: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the options win."""
        return super().settings_customise_sources(*arguments, **sources)[::-1]


def load_openai_settings(*, values_win: bool = False, **values: Any) -> OpenAISettings:
    """Make the settings from ``values`` and the environment.

    Args:
        values_win: Over the environment: they are options of a command, not those of a file.
        **values: By the names of settings.

    Raises:
        SettingsError: A value is wrong or missing; the message names it and its variable.
    """
    try:
        return (_CommandLineSettings if values_win else OpenAISettings)(**values)
    except ValidationError as error:
        reasons = "; ".join(_explain(item["loc"], item["msg"]) for item in error.errors())
        raise SettingsError(f"settings of the OpenAI-compatible server: {reasons}") from error


def _explain(location: tuple[int | str, ...], message: str) -> str:
    name = ".".join(map(str, location))
    top = str(location[0]) if location else ""
    variable = f" (or {ENVIRONMENT_PREFIX}{top.upper()})"
    return f"{name}{variable if top in OpenAISettings.model_fields else ''}: {message}"


def _split(value: str) -> list[str]:
    return [url.strip() for url in value.split(",") if url.strip()]
