"""Search settings: section ``search`` of agent.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    ValidationError,
    field_validator,
)

from deepeyes_plugins.remote.urls import refuse_credentials
from deepeyes_plugins.search.contracts import MAXIMUM_RESULTS, SearchNotConfiguredError

Options = TypeVar("Options", bound=BaseModel)

Kind = Literal["text", "image"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_CHOICES: Mapping[Kind, frozenset[str]] = {
    "text": frozenset({"provider", "fallbacks", "providers"}),
    "image": frozenset({"image_provider", "image_fallbacks", "image_providers"}),
}
"""Settings that choose providers."""


class CacheSettings(BaseModel):
    """Settings of the response cache."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    path: Path | None = Field(
        None,
        description="SQLite file; processes of one machine may share it. Unset: `deepeyes search "
        "serve` uses deepeyes/search.sqlite in the user's cache folder, agents use memory.",
    )
    redis_url: str | None = Field(
        None,
        description="Redis server instead of SQLite, as redis://host:6379/0; its `maxmemory` "
        "limits the size.",
    )
    redis_password_env: str = Field(
        "DEEPEYES_REDIS_PASSWORD",
        description="Name of the environment variable that holds the password of Redis, if any.",
    )
    ttl: float = Field(
        604_800.0, ge=0, description="Lifetime of a cached response, in seconds; 0 disables."
    )
    negative_ttl: float = Field(
        3600.0,
        ge=0,
        description="Lifetime of a cached response without results and of a cached refusal, in "
        "seconds.",
    )
    size_mb: int = Field(
        1024, gt=0, description="Maximum size of the cache, in MiB; the oldest entries are evicted."
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str | None) -> str | None:
        return refuse_credentials(value, "search.cache.redis_password_env")


class Budget(BaseModel):
    """Maximum number of searches of a provider; cached responses do not count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_day: int | None = Field(None, ge=0, description="Maximum searches per UTC day.")
    per_run: int | None = Field(None, ge=0, description="Maximum searches per run (see `run`).")


class PageSettings(BaseModel):
    """Settings of the tool `read_page`, which `tools` adds to an environment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(
        2000,
        ge=25,
        description="Maximum length of a page's text, in tokens, estimated as four bytes of UTF-8 "
        "each.",
    )
    timeout: float = Field(20.0, gt=0, description="Seconds for one page, redirects included.")
    max_mb: float = Field(3.0, gt=0, description="Maximum size of a page, in MiB.")
    ports: tuple[int, ...] = Field((80, 443), description="Allowed ports; empty for all.")
    allowed_networks: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Private networks that the model may read, as 10.1.0.0/16, with everything on "
        "them.",
    )


class SearchSettings(BaseModel):
    """Settings of search: providers, filters, cache, budgets and limits of observations."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    provider: str = Field(
        "local", description="Text-search provider; `deepeyes plugins` lists the names."
    )
    fallbacks: tuple[str, ...] = Field(
        (), description="Providers to ask, in this order, if the provider fails."
    )
    providers: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Options of text-search providers, by name of the provider.",
    )
    image_provider: str = Field("cache", description="Image-search provider.")
    image_fallbacks: tuple[str, ...] = Field(
        (),
        description="Providers to ask, in this order, if the image provider fails or finds "
        "nothing.",
    )
    image_providers: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Options of image-search providers, by name of the provider.",
    )

    url: str | None = Field(
        None,
        pattern="^https?://",
        description="Base URL of a running `deepeyes search serve`, whose providers are used "
        "instead of those above.",
    )
    token_env: str = Field(
        "DEEPEYES_TOKEN_SEARCH",
        description="Name of the environment variable that holds the service's bearer token. The "
        "service requires the token if the variable is set.",
    )
    cache: CacheSettings = Field(default_factory=CacheSettings, description="Response cache.")
    budgets: dict[str, Budget] = Field(
        default_factory=dict, description="Budgets by name of the provider, text or image."
    )
    run: str = Field(
        "",
        description="Name of the experiment, under which budgets per run are counted. Unset: each "
        "process is a run of its own.",
    )

    count: int = Field(
        10, ge=1, le=MAXIMUM_RESULTS, description="Maximum number of results of a search."
    )
    language: str = Field(
        "", pattern="^([a-z]{2})?$", description="Language of text results, ISO 639-1 (en)."
    )
    region: str = Field(
        "", pattern="^([A-Z]{2})?$", description="Country of text results, ISO 3166-1 (US)."
    )
    sites: tuple[str, ...] = Field(
        (), description="Host names to which text results are restricted."
    )
    excluded_sites: tuple[str, ...] = Field(
        (),
        description="Host names to exclude from text results, for instance those that publish a "
        "benchmark's answers.",
    )
    since: date | None = Field(None, description="Earliest date of publication of a text result.")
    until: date | None = Field(
        None,
        description="Latest date of publication of a text result, for instance before a benchmark "
        "was published.",
    )

    image_searches: int = Field(1, ge=0, description="Maximum image searches of one trajectory.")
    image_region: bool = Field(
        False, description="Let the model search for a part of the image (argument `region`)."
    )

    pages: PageSettings = Field(
        default_factory=PageSettings, description="Reading of web pages (tool `read_page`)."
    )

    title_characters: int = Field(300, ge=1, description="Maximum length of a title.")
    snippet_characters: int = Field(1500, ge=0, description="Maximum length of a snippet.")
    total_characters: int = Field(
        12_000,
        ge=100,
        description="Maximum length of an observation, in characters; results that do not fit are "
        "omitted.",
    )
    timeout: float = Field(
        60.0, gt=0, description="Time limit of a search, in seconds, retries included."
    )

    policy: dict[str, bool] = Field(
        default_factory=dict,
        description="Whether the search tools are available, by data source or benchmark (patterns "
        "with *, case-insensitive; the first match decides). Without a match they are available in "
        "training; in evaluation the published rules apply.",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        return refuse_credentials(value, "search.token_env")

    def chooses(self, kind: Kind) -> bool:
        """Return whether the settings choose a provider, rather than leave it at the default."""
        return bool(self.model_fields_set & _CHOICES[kind])


def read_options(provider: str, model: type[Options], options: Mapping[str, Any]) -> Options:
    """Validate the options of a provider.

    Args:
        provider: Its key below ``search``, for instance ``providers.serper``.
        model: Model of the options.
        options: Values from agent.yaml.

    Raises:
        SearchNotConfiguredError: An option is wrong; key and reason are named.
    """
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        reasons = "; ".join(
            f"search.{provider}.{'.'.join(map(str, one['loc']))}: "
            + (
                f"unknown key; known are {', '.join(model.model_fields)}"
                if one["type"] == "extra_forbidden"
                else one["msg"]
            )
            for one in error.errors()
        )
        raise SearchNotConfiguredError(f"settings: {reasons}") from error
