"""Settings of search: section ``search`` of agent.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, ValidationError

from deepeyes_plugins.search.contracts import MAXIMUM_RESULTS, SearchNotConfiguredError

Options = TypeVar("Options", bound=BaseModel)

Kind = Literal["text", "image"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_CHOICES: Mapping[Kind, frozenset[str]] = {
    "text": frozenset({"provider", "fallbacks", "providers"}),
    "image": frozenset({"image_provider", "image_fallbacks", "image_providers"}),
}
"""Settings that say who answers."""


class CacheSettings(BaseModel):
    """Where answers are kept, and for how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path | None = Field(
        None,
        description="SQLite file; processes of one machine may share it. Unset: `deepeyes search "
        "serve` keeps answers in deepeyes/search.sqlite of the user's cache folder, agents in "
        "memory.",
    )
    redis_url: str | None = Field(
        None, description="Redis instead, as redis://host:6379/0; its own `maxmemory` limits it."
    )
    redis_password_env: str = Field(
        "DEEPEYES_REDIS_PASSWORD",
        description="Name of the environment variable that holds the password of Redis, if any.",
    )
    ttl: float = Field(604_800.0, ge=0, description="Seconds for which answers are kept; 0: none.")
    negative_ttl: float = Field(
        3600.0,
        ge=0,
        description="The same for answers without results, and for queries that were refused.",
    )
    size_mb: int = Field(
        1024, gt=0, description="Largest size of the kept answers, in MiB; the oldest go first."
    )


class Budget(BaseModel):
    """How many searches a provider may be asked for; answers that are known cost none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_day: int | None = Field(None, ge=0, description="Searches a day (UTC).")
    per_run: int | None = Field(None, ge=0, description="Searches a run (see `run`).")


class PageSettings(BaseModel):
    """What the tool `read_page` reads; no environment has it unless `tools` gives it one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(
        2000,
        ge=25,
        description="Longest text of a page, in tokens of the model, which are estimated: four "
        "bytes of UTF-8 are one.",
    )
    timeout: float = Field(20.0, gt=0, description="Seconds for one page, redirects included.")
    max_mb: float = Field(3.0, gt=0, description="Largest page that is read, in MiB.")
    ports: tuple[int, ...] = Field(
        (80, 443), description="Ports that pages are read from; empty for all."
    )
    allowed_networks: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Private networks whose pages are read nevertheless, as 10.1.0.0/16. Whatever "
        "is there, the model can read it.",
    )


class SearchSettings(BaseModel):
    """Who answers searches, how they are filtered, and how much of an answer the model reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str = Field(
        "local", description="Who answers text searches; `deepeyes plugins` lists the names."
    )
    fallbacks: tuple[str, ...] = Field(
        (), description="Who answers, in this order, while the provider before does not work."
    )
    providers: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Options of text-search providers, by name of the provider.",
    )
    image_provider: str = Field("cache", description="Who answers searches by image.")
    image_fallbacks: tuple[str, ...] = Field(
        (),
        description="Who answers, in this order, where the image provider before does not work or "
        "finds nothing.",
    )
    image_providers: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Options of image-search providers, by name of the provider.",
    )

    url: str | None = Field(
        None,
        pattern="^https?://",
        description="Base URL of a running `deepeyes search serve`, whose providers answer instead "
        "of those above.",
    )
    token_env: str = Field(
        "DEEPEYES_TOKEN_SEARCH",
        description="Name of the environment variable that holds the service's bearer token. The "
        "service asks for a token when the variable is set.",
    )
    cache: CacheSettings = Field(
        default_factory=CacheSettings, description="Answers that are kept for equal queries."
    )
    budgets: dict[str, Budget] = Field(
        default_factory=dict, description="Budgets by name of the provider, text or image."
    )
    run: str = Field(
        "",
        description="Name of the experiment: budgets per run are counted under it. Unset: a run is "
        "the life of one process.",
    )

    count: int = Field(10, ge=1, le=MAXIMUM_RESULTS, description="Results of a search at most.")
    language: str = Field(
        "", pattern="^([a-z]{2})?$", description="Language of text results, ISO 639-1 (en)."
    )
    region: str = Field(
        "", pattern="^([A-Z]{2})?$", description="Country that one searches from, ISO 3166-1 (US)."
    )
    sites: tuple[str, ...] = Field((), description="Host names: text results of these only.")
    excluded_sites: tuple[str, ...] = Field(
        (),
        description="Host names: no text results of these, for instance those that publish a "
        "benchmark's answers.",
    )
    since: date | None = Field(None, description="Text results of that day or later only.")
    until: date | None = Field(
        None,
        description="Text results of that day or earlier only, for instance before a benchmark "
        "came out.",
    )

    image_searches: int = Field(
        1, ge=0, description="Searches by image that one trajectory may make."
    )
    image_region: bool = Field(
        False, description="Let the model search for a part of the image (argument `region`)."
    )

    pages: PageSettings = Field(
        default_factory=PageSettings, description="Reading of web pages (tool `read_page`)."
    )

    title_characters: int = Field(300, ge=1, description="Longest title, in characters.")
    snippet_characters: int = Field(
        1500, ge=0, description="Longest snippet of one result, in characters."
    )
    total_characters: int = Field(
        12_000,
        ge=100,
        description="Longest answer, in characters; results that do not fit are left out.",
    )
    timeout: float = Field(
        60.0, gt=0, description="Seconds after which a search is given up, retries included."
    )

    policy: dict[str, bool] = Field(
        default_factory=dict,
        description="Whether the search tools work, by data source or benchmark (patterns with *, "
        "any case; the first that fits decides). Without a rule they work in training; in "
        "evaluation the published policy follows.",
    )

    def chooses(self, kind: Kind) -> bool:
        """Whether somebody has said who answers; else it is who is there by default."""
        return bool(self.model_fields_set & _CHOICES[kind])


def read_options(provider: str, model: type[Options], options: Mapping[str, Any]) -> Options:
    """Check the options of a provider.

    Args:
        provider: Its name, with its place in the settings: ``providers.serper``.
        model: Their form.
        options: What agent.yaml says.

    Raises:
        SearchNotConfiguredError: One is wrong; key and reason are named.
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
