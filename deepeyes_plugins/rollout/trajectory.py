"""Trajectory records, for rewards, evaluation and logs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from deepeyes_plugins.protocol.content import EncodedImage, Message, Part, Role, encodable

Text = Annotated[str, PlainSerializer(encodable, when_used="json")]
"""Text of a model or a tool; lone surrogates are replaced in JSON."""


class EndReason(StrEnum):
    """Why a trajectory ended."""

    ANSWER = "answer"
    NO_ACTION = "no_action"
    TURNS = "turns"
    TOKENS = "tokens"
    IMAGES = "images"
    WALL_TIME = "wall_time"
    INFRASTRUCTURE = "infrastructure"

    @property
    def is_limit(self) -> bool:
        """Whether a limit ended the trajectory."""
        return self in (self.TURNS, self.TOKENS, self.IMAGES, self.WALL_TIME)


ActionKind = Literal["code", "tool_call", "answer", "malformed"]


class PartRecord(BaseModel):
    """A part of a message: text, or an image by its content hash."""

    model_config = ConfigDict(extra="forbid")

    text: Text | None = None
    image: str | None = Field(None, description="sha256 of the image file's bytes.")

    @classmethod
    def of(cls, part: Part) -> PartRecord:
        """Record a part; of an image only its hash."""
        return cls(image=part.sha256) if isinstance(part, EncodedImage) else cls(text=part)


class MessageRecord(BaseModel):
    """A message of the prompt."""

    model_config = ConfigDict(extra="forbid")

    role: Role
    parts: list[PartRecord]

    @classmethod
    def of(cls, message: Message) -> MessageRecord:
        """Record a message; of images only their hashes."""
        return cls(role=message.role, parts=[PartRecord.of(part) for part in message.parts])


class TurnRecord(BaseModel):
    """One assistant turn and its observation."""

    model_config = ConfigDict(extra="forbid")

    text: Text = Field(description="The assistant turn, prefill included.")
    finish_reason: Literal["stop", "length"] = "stop"
    tokens: int = Field(0, description="Generated tokens.")
    prompt_tokens: int = Field(
        0, description="Prompt tokens of the request; 0 if the engine does not report them."
    )
    action: ActionKind | None = None
    tool: Text | None = Field(None, description="Tool that was called.")
    observation: list[PartRecord] | None = None
    error: Text | None = Field(None, description="Why the action failed.")
    infrastructure_error: bool = False
    generate_seconds: float = 0.0
    tool_seconds: float = 0.0
    tool_figures: dict[str, float] = Field(
        default_factory=dict, description="Metrics that the tool reports for the call."
    )


COUNTS = ("turns", "tool_calls", "images", "failed_actions", "infrastructure_errors")
"""Names of the counts of a trajectory, as trainers log them."""


class Trajectory(BaseModel):
    """One finished trajectory. ``model_dump_json()`` is one line of a trajectory log."""

    model_config = ConfigDict(extra="forbid")

    task_id: str
    data_source: str = ""
    environment: str = ""
    question: Text = Field("", description="The plain question, without prompt and images.")
    prompt: list[MessageRecord] = Field(
        default_factory=list,
        description="Prompt with system prompt and images. Recorded by evaluations; in training "
        "the data set has it under the task's id.",
    )
    ground_truth: Text = Field(
        "", description="Reference answer for scoring; never shown to the model."
    )
    turns: list[TurnRecord] = []
    answer: Text | None = None
    end_reason: EndReason
    error: Text | None = Field(None, description="The error of end reason infrastructure.")
    seconds: float = 0.0
    labels: dict[str, int | float | str] = Field(
        default_factory=dict,
        description="Origin: in training step, split and others; in an evaluation `benchmark`, "
        "`model` and, if known, the sample's `index`.",
    )

    @property
    def assistant_turns(self) -> list[str]:
        """The text of each assistant turn."""
        return [turn.text for turn in self.turns]

    @property
    def question_images(self) -> list[str]:
        """Hashes of the prompt's images in order, if the prompt is recorded."""
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
        """Number of images in observations."""
        return sum(part.image is not None for turn in self.turns for part in turn.observation or ())

    @property
    def infrastructure_errors(self) -> int:
        """Number of infrastructure errors."""
        return sum(turn.infrastructure_error for turn in self.turns) + (
            self.end_reason is EndReason.INFRASTRUCTURE
        )

    @property
    def counts(self) -> dict[str, int]:
        """The counts that trainers log, by name; see ``COUNTS``."""
        failed = sum(turn.error is not None for turn in self.turns)
        return dict(
            zip(
                COUNTS,
                (
                    len(self.turns),
                    sum(self.tool_calls.values()),
                    self.images_returned,
                    failed,
                    self.infrastructure_errors,
                ),
                strict=True,
            )
        )
