"""Settings of the policy on an OpenAI-compatible server."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import PydanticBaseSettingsSource, SettingsConfigDict

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.remote.urls import displayed, is_http_url, refuse_credentials, versioned
from deepeyes_plugins.settings import LayeredSettings

ENVIRONMENT_PREFIX = "DEEPEYES_OPENAI_"


class OpenAISettings(LayeredSettings, RemoteSettings):
    """Servers, model, sampling and limits of requests.

    ``DEEPEYES_OPENAI_…`` environment variables override values from code or a file.
    """

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENVIRONMENT_PREFIX, protected_namespaces=()
    )

    url: str = Field(
        description="Base URL of the server with its version path (http://host:8000/v1; /v1 is "
        "added to a URL without path). Conversations are distributed over several comma-separated "
        "URLs."
    )
    model: str | None = Field(
        None, description="Name of the model. Unset: the only model that GET /models lists."
    )
    api_key_env: str = Field(
        "DEEPEYES_OPENAI_API_KEY",
        description="Environment variable with the API key. No key is sent if it is not set.",
    )
    profile: Literal["generic", "vllm", "sglang"] = Field(
        "generic",
        description="Type of server. 'generic' sends standard fields only; the others also "
        "request that stop strings stay in the output, and prefill each turn's <think>.",
    )
    prefill: bool | None = Field(
        None,
        description="Send the dialect's prefill as the start of the assistant's message. "
        "Unset: true for vllm and sglang, false for generic.",
    )
    send_stop: bool = Field(
        True,
        description="Send stop strings. Disable it for servers that fail on them (transformers "
        "serve 5.5 with vision-language models): turns are then cut at their closing tag after "
        "generation.",
    )
    temperature: float = Field(0.0, ge=0, description="Sampling temperature; 0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling; unset: not sent.")
    seed: int | None = Field(None, description="Sampling seed; unset: not sent.")
    max_tokens: int | None = Field(
        8192, ge=1, description="Maximum generated tokens per turn; null: the server's default."
    )
    max_total_tokens: int | None = Field(
        None,
        ge=1,
        description="Maximum tokens of a conversation (prompt, turns and observations, as counted "
        "by the server). Unset: the server's context length.",
    )
    max_pixels: int | None = Field(
        None,
        ge=1024,
        description="Maximum pixels of an image that is sent; larger images are scaled down for "
        "the model, but not for its tools. Unset: no limit; most servers scale images themselves.",
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Additional fields of every request, for instance top_k for vLLM.",
    )
    timeout: float = Field(600.0, gt=0, description="Timeout of one request in seconds.")
    concurrency: int = Field(
        256, ge=1, description="Maximum concurrent requests to one server; others are queued."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if not _split(value):
            raise ValueError("no URL given")
        for url in _split(value):
            refuse_credentials(url, "api_key_env")
            if not is_http_url(url):
                raise ValueError(f"{displayed(url)!r} is not an http:// or https:// URL")
        return value

    @property
    def servers(self) -> tuple[str, ...]:
        """The base URLs, each with its version path and without a trailing slash."""
        return tuple(map(versioned, _split(self.url)))

    @property
    def sends_prefill(self) -> bool:
        """Whether requests include the prefill of a turn."""
        return self.profile != "generic" if self.prefill is None else self.prefill


class _CommandLineSettings(OpenAISettings):
    """Settings from command-line options, which override the environment."""

    @classmethod
    def settings_customise_sources(
        cls, *arguments: Any, **sources: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Reverse the sources, so that options have priority."""
        return super().settings_customise_sources(*arguments, **sources)[::-1]


def load_openai_settings(*, values_win: bool = False, **values: Any) -> OpenAISettings:
    """Load the settings from ``values`` and the environment.

    Args:
        values_win: Whether ``values`` override the environment, as command-line options do.
        **values: Values by the names of settings.

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
