"""Settings of the judge."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from deepeyes_plugins.judge.contracts import PromptName
from deepeyes_plugins.remote.settings import RemoteSettings
from deepeyes_plugins.remote.urls import is_http_url, versioned

BASE_VARIABLE = "LLM_AS_A_JUDGE_BASE"
"""The authors' environment variable with the base URL of the judge (Visual-Agent/DeepEyesV2)."""


class JudgeEndpoint(BaseModel):
    """One server that judges."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(
        description="Base URL of an OpenAI-compatible server, with its version path (/v1 is added "
        "where a URL has no path)."
    )
    model: str | None = Field(
        None, description="Model to ask for. Unset: the one model that the server lists."
    )
    api_key_env: str = Field(
        "DEEPEYES_JUDGE_API_KEY",
        description="Name of the environment variable that holds the API key. No key is sent when "
        "the variable is not set.",
    )
    weight: float = Field(
        1.0, gt=0, description="Share of the questions, against the weights of the others."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if not is_http_url(value.strip()):
            raise ValueError(f"{value!r} is not an http:// or https:// URL")
        return versioned(value)


class PromptSettings(BaseModel):
    """How one of the two questions is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(ge=0, description="Sampling temperature.")
    max_tokens: int = Field(8192, ge=1, description="Tokens that the judge may write.")
    tries: int = Field(ge=1, description="How often it is asked, until its verdict can be read.")


class AnswerSettings(PromptSettings):
    """Comparing an answer with the reference; temperature and tokens of Visual-Agent/DeepEyesV2."""

    temperature: float = Field(0.3, ge=0, description="Sampling temperature.")
    tries: int = Field(4, ge=1, description="How often it is asked, until its verdict can be read.")


class EquivalenceSettings(PromptSettings):
    """Equivalence in mathematics; temperature and tries of Visual-Agent/DeepEyesV2."""

    temperature: float = Field(0.5, ge=0, description="Sampling temperature.")
    tries: int = Field(8, ge=1, description="How often it is asked, until its verdict can be read.")


class JudgeSettings(RemoteSettings):
    """Who judges answers, how, and what happens if nobody does."""

    endpoints: tuple[JudgeEndpoint, ...] = Field(
        (),
        description=f"The servers. None: the one that ${BASE_VARIABLE} names; without it there is "
        "no judge, and rules decide.",
    )
    answer: AnswerSettings = Field(
        default_factory=AnswerSettings,
        description="How an answer is compared with the reference (perception, search).",
    )
    equivalence: EquivalenceSettings = Field(
        default_factory=EquivalenceSettings,
        description="How the equivalence of mathematical answers is asked for (reason).",
    )
    prompts: Path | None = Field(
        None,
        description="Folder with instructions of your own, answer.md or equivalence.md or both.",
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of every request, for instance chat_template_kwargs for vLLM.",
    )
    longest_text: int = Field(
        20_000,
        ge=100,
        description="Characters of a question, reference or answer that are shown to the judge; "
        "the middle of a longer one is left out.",
    )
    cache_size: int = Field(
        200_000, ge=0, description="Verdicts that are kept for equal comparisons; 0: none."
    )
    cache_folder: Path | None = Field(
        None,
        description="Folder on a local disk in which the processes of a machine share their "
        "verdicts, also with later runs. Unset: each process remembers its own.",
    )
    outage: Literal["wait", "mark"] = Field(
        "wait",
        description="What a judge that is down means: 'wait' for it, for up to outage_patience, "
        "and then stop the run; 'mark' the trajectory as one that could not be scored.",
    )
    outage_patience: float = Field(
        1800.0, ge=0, description="Seconds without any answer after which the run is stopped."
    )
    preflight: bool = Field(
        True, description="Ask the judge, before training, what is known to be right and wrong."
    )
    # A verdict comes after up to 8,192 tokens of reasoning, from a server that may be busy.
    timeout: float = Field(300.0, gt=0, description="Seconds that one request may take.")
    retries: int = Field(
        3, ge=0, description="Further rounds through the endpoints after all of them failed."
    )

    @field_validator("prompts")
    @classmethod
    def _check_prompts(cls, value: Path | None) -> Path | None:
        names = [f"{name}.md" for name in get_args(PromptName)]
        if value is not None and not any((value / name).is_file() for name in names):
            raise ValueError(f"{value} is no folder with {' or '.join(names)}")
        return value

    def servers(self) -> tuple[JudgeEndpoint, ...]:
        """The endpoints; without any, the one of the environment variable.

        Raises:
            ValueError: The variable holds no URL.
        """
        base = os.environ.get(BASE_VARIABLE, "").strip()
        if self.endpoints or not base:
            return self.endpoints
        if not is_http_url(base):
            raise ValueError(f"{BASE_VARIABLE}: {base!r} is not an http:// or https:// URL")
        return (JudgeEndpoint(url=base),)

    def prompt(self, name: PromptName) -> PromptSettings:
        """The settings of one prompt."""
        return self.answer if name == "answer" else self.equivalence
