"""Judge settings: section ``judge`` of agent.yaml."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from deepeyes_plugins.judge.contracts import PromptName
from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.remote.urls import displayed, is_http_url, refuse_credentials, versioned

BASE_VARIABLE = "LLM_AS_A_JUDGE_BASE"
"""The authors' environment variable with the base URL of the judge (Visual-Agent/DeepEyesV2)."""


class JudgeEndpoint(BaseModel):
    """Settings of one judge server."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str = Field(
        description="Base URL of an OpenAI-compatible server, with its version path (/v1 is added "
        "to a URL without a path)."
    )
    model: str | None = Field(
        None, description="Name of the model. Unset: the only model that the server lists."
    )
    api_key_env: str = Field(
        "DEEPEYES_JUDGE_API_KEY",
        description="Name of the environment variable that holds the API key. No key is sent if "
        "the variable is not set.",
    )
    weight: float = Field(
        1.0, gt=0, description="Share of the requests, relative to the other endpoints' weights."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        refuse_credentials(value, "api_key_env")
        if not is_http_url(value.strip()):
            raise ValueError(f"{displayed(value)!r} is not an http:// or https:// URL")
        return versioned(value)


class PromptSettings(BaseModel):
    """Settings of one of the two prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(ge=0, description="Sampling temperature.")
    max_tokens: int = Field(8192, ge=1, description="Maximum tokens of a reply.")
    tries: int = Field(ge=1, description="Maximum number of requests for a readable verdict.")


class AnswerSettings(PromptSettings):
    """Prompt ``answer``; temperature and tokens of Visual-Agent/DeepEyesV2."""

    temperature: float = Field(0.3, ge=0, description="Sampling temperature.")
    tries: int = Field(4, ge=1, description="Maximum number of requests for a readable verdict.")


class EquivalenceSettings(PromptSettings):
    """Prompt ``equivalence``; temperature and tries of Visual-Agent/DeepEyesV2."""

    temperature: float = Field(0.5, ge=0, description="Sampling temperature.")
    tries: int = Field(8, ge=1, description="Maximum number of requests for a readable verdict.")


class JudgeSettings(RemoteSettings):
    """Endpoints, prompts, verdict cache and outages of the judge."""

    endpoints: tuple[JudgeEndpoint, ...] = Field(
        (),
        description=f"Judge servers. Empty: the server that ${BASE_VARIABLE} names; without it "
        "there is no judge, and rules decide.",
    )
    answer: AnswerSettings = Field(
        default_factory=AnswerSettings,
        description="Prompt that compares an answer with the reference (perception, search).",
    )
    equivalence: EquivalenceSettings = Field(
        default_factory=EquivalenceSettings,
        description="Prompt for the equivalence of mathematical answers (reason).",
    )
    prompts: Path | None = Field(
        None,
        description="Folder with instructions of your own: answer.md, equivalence.md or both.",
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of every request, for instance chat_template_kwargs for vLLM.",
    )
    longest_text: int = Field(
        20_000,
        ge=100,
        description="Maximum characters of a question, reference or answer in a request; the "
        "middle of a longer text is omitted.",
    )
    cache_size: int = Field(
        200_000, ge=0, description="Maximum number of cached verdicts; 0 disables the cache."
    )
    cache_folder: Path | None = Field(
        None,
        description="Folder on a local disk in which the processes of a machine share verdicts, "
        "also with later runs. Unset: each process has a cache of its own.",
    )
    outage: Literal["wait", "mark"] = Field(
        "wait",
        description="Behaviour while all endpoints are down: 'wait' for up to outage_patience, "
        "then stop the run; or 'mark' the trajectory as not scored.",
    )
    outage_patience: float = Field(
        1800.0, ge=0, description="Seconds without any response after which the run is stopped."
    )
    preflight: bool = Field(
        True, description="Check the endpoints by known verdicts before training."
    )
    # A verdict may follow 8,192 tokens of reasoning on a busy server.
    timeout: float = Field(300.0, gt=0, description="Time limit of one request, in seconds.")
    retries: int = Field(
        3, ge=0, description="Further rounds through the endpoints after all of them failed."
    )

    @field_validator("prompts")
    @classmethod
    def _check_prompts(cls, value: Path | None) -> Path | None:
        names = [f"{name}.md" for name in get_args(PromptName)]
        if value is not None and not any((value / name).is_file() for name in names):
            raise ValueError(f"{value} is not a folder with {' or '.join(names)}")
        return value

    def servers(self) -> tuple[JudgeEndpoint, ...]:
        """Return the endpoints; without any, the one of the environment variable.

        Raises:
            ValueError: The variable is not a URL.
        """
        base = os.environ.get(BASE_VARIABLE, "").strip()
        if self.endpoints or not base:
            return self.endpoints
        try:
            return (JudgeEndpoint(url=base),)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{BASE_VARIABLE}: {reason}") from None

    def prompt(self, name: PromptName) -> PromptSettings:
        """Return the settings of one prompt."""
        return self.answer if name == "answer" else self.equivalence
