"""The record of a trajectory: what rewards, evaluation and logs read."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from deepeyes_plugins.protocol.content import EncodedImage, Message, Part, Role, encodable

Text = Annotated[str, PlainSerializer(encodable, when_used="json")]
"""Text of a model or a tool: what UTF-8 cannot hold is replaced when it is written."""


class EndReason(StrEnum):
    """Why a trajectory ended."""

    ANSWER = "answer"
    NO_ACTION = "no_action"
    TURNS = "turns"
    TOKENS = "tokens"
    IMAGES = "images"
    WALL_TIME = "wall_time"
    INFRASTRUCTURE = "infrastructure"


ActionKind = Literal["code", "tool_call", "answer", "malformed"]


class PartRecord(BaseModel):
    """A part of a message: text, or an image by its content hash."""

    model_config = ConfigDict(extra="forbid")

    text: Text | None = None
    image: str | None = Field(None, description="sha256 of the image file's bytes.")

    @classmethod
    def of(cls, part: Part) -> PartRecord:
        """Record a part; an image leaves only its hash here."""
        return cls(image=part.sha256) if isinstance(part, EncodedImage) else cls(text=part)


class MessageRecord(BaseModel):
    """A message of the prompt."""

    model_config = ConfigDict(extra="forbid")

    role: Role
    parts: list[PartRecord]

    @classmethod
    def of(cls, message: Message) -> MessageRecord:
        """Record a message; its images leave only their hashes here."""
        return cls(role=message.role, parts=[PartRecord.of(part) for part in message.parts])


class TurnRecord(BaseModel):
    """One assistant turn and what came back."""

    model_config = ConfigDict(extra="forbid")

    text: Text = Field(description="The assistant turn, prefill included.")
    finish_reason: Literal["stop", "length"] = "stop"
    tokens: int = Field(0, description="Generated tokens.")
    prompt_tokens: int = Field(
        0, description="Tokens that the engine read for this turn; 0 where it does not tell."
    )
    action: ActionKind | None = None
    tool: Text | None = Field(None, description="Tool that was called.")
    observation: list[PartRecord] | None = None
    error: Text | None = Field(None, description="Why the action failed.")
    infrastructure_error: bool = False
    generate_seconds: float = 0.0
    tool_seconds: float = 0.0
    tool_figures: dict[str, float] = Field(
        default_factory=dict, description="What the tool tells of the call, for metrics."
    )


class Trajectory(BaseModel):
    """One finished trajectory. ``model_dump_json()`` is one line of a trajectory log."""

    model_config = ConfigDict(extra="forbid")

    task_id: str
    data_source: str = ""
    environment: str = ""
    question: Text = Field("", description="The plain question, without prompt and images.")
    prompt: list[MessageRecord] = Field(
        default_factory=list,
        description="What the model was given, system prompt and images included. Evaluations "
        "record it; in training the data set holds it, under the task's id.",
    )
    ground_truth: Text = Field(
        "", description="The reference answer, for scoring; the model never sees it."
    )
    turns: list[TurnRecord] = []
    answer: Text | None = None
    end_reason: EndReason
    error: Text | None = Field(None, description="What failed, for end reason infrastructure.")
    seconds: float = 0.0
    labels: dict[str, int | float | str] = Field(
        default_factory=dict,
        description="Where it was played: in training the step, split and the like; in an "
        "evaluation `benchmark`, `model` and, where the harness tells it, the sample's `index`.",
    )

    @property
    def assistant_turns(self) -> list[str]:
        """The text of each assistant turn."""
        return [turn.text for turn in self.turns]

    @property
    def question_images(self) -> list[str]:
        """The hashes of the prompt's images in order, where the prompt is recorded."""
        parts = (part for message in self.prompt for part in message.parts)
        return [part.image for part in parts if part.image is not None]

    @property
    def tool_calls(self) -> dict[str, int]:
        """Number of calls by tool."""
        counts: dict[str, int] = {}
        for turn in self.turns:
            if turn.tool is not None:
                counts[turn.tool] = counts.get(turn.tool, 0) + 1
        return counts

    @property
    def images_returned(self) -> int:
        """Images that observations brought."""
        return sum(part.image is not None for turn in self.turns for part in turn.observation or ())

    @property
    def infrastructure_errors(self) -> int:
        """Failures that were ours."""
        return sum(turn.infrastructure_error for turn in self.turns) + (
            self.end_reason is EndReason.INFRASTRUCTURE
        )
