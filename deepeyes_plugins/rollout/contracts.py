"""The contracts between a host, the agent core and what the agent can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from deepeyes_plugins.protocol.actions import Action, parse_action
from deepeyes_plugins.protocol.content import EncodedImage, Message, Part
from deepeyes_plugins.protocol.dialect import Dialect
from deepeyes_plugins.protocol.questions import plain_question

if TYPE_CHECKING:
    from deepeyes_plugins.rollout.trajectory import Trajectory


class InfrastructureError(Exception):
    """Something of ours failed (server down, time-out of a service), not the model.

    It is counted apart from the model's own mistakes and never scores as a wrong answer.
    """


@dataclass(frozen=True, slots=True)
class Task:
    """One question.

    Attributes:
        id: Stable name of the question within its data set.
        messages: The prompt, system first where there is one, images in their original size.
        data_source: Which data set it comes from; chooses the reward.
        ground_truth: The reference answer; empty where there is none.
        metadata: Further columns, for instance the plain question; never shown to the model.
    """

    id: str
    messages: tuple[Message, ...]
    data_source: str = ""
    ground_truth: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[EncodedImage, ...]:
        """All images of the prompt in order; ``image_1`` in the sandbox is the first."""
        return tuple(image for message in self.messages for image in message.images)

    @property
    def question(self) -> str:
        """The plain question: that of the data set, else the last user message without its frame.

        Judges compare answers by it; the model sees :attr:`messages`.
        """
        known = self.metadata.get("question")
        if isinstance(known, str) and known.strip():
            return plain_question(known)
        asked = (message.text for message in reversed(self.messages) if message.role == "user")
        return plain_question(next(asked, ""))


class Limits(BaseModel):
    """When a trajectory ends, whatever the model wants."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turns: int = Field(9, ge=1, description="Assistant turns at most (published: 9).")
    turn_tokens: int = Field(
        8192, ge=1, description="Tokens that one turn may generate (published: 8,192)."
    )
    tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens of all turns and observations together. Unset: as many as the host "
        "has room for (in training data.max_response_length; published: 16,384).",
    )
    wall_time: float = Field(
        1800.0,
        gt=0,
        description="Seconds for the whole trajectory. Generation counts only where the engine is "
        "never stopped for training.",
    )
    engine_patience: float = Field(
        7200.0,
        gt=0,
        description="Seconds for one turn, pauses of the engine for training included. An engine "
        "that takes longer hangs: the trajectory counts as failed and has no score.",
    )
    images: int = Field(
        32, ge=0, description="Images that observations may add; the next one ends the episode."
    )
    infrastructure_errors: int = Field(
        1,
        ge=0,
        description="Tool calls that may fail because of our side (sandbox or search down), not "
        "the model's; one more ends the trajectory, which then counts as failed and has no score.",
    )


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """What the policy produced in one turn.

    Attributes:
        text: The whole turn, prefilled ``<think>`` included, closing tag kept.
        finish_reason: ``stop`` (ended by itself or at a stop string) or ``length`` (cut).
        tokens: Generated tokens, prefill not counted.
        prompt_tokens: Tokens that the engine read for it; 0 where it does not tell.
    """

    text: str
    finish_reason: Literal["stop", "length"] = "stop"
    tokens: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """What comes back to the model: one ``user`` message.

    Attributes:
        parts: Rendered text and images in order.
        error: Why the action did not succeed; ``None`` if it did.
        infrastructure: The error is ours, not the model's.
        figures: Numbers about the call by name, for metrics; the model does not see them.
    """

    parts: tuple[Part, ...]
    error: str | None = None
    infrastructure: bool = False
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def message(self) -> Message:
        """As a message."""
        return Message("user", self.parts)


@dataclass(frozen=True, slots=True)
class Step:
    """The environment's reply to an action.

    Attributes:
        observation: What the model gets back; ``None`` ends the episode.
        tool: Name of the tool that was called, if one was.
    """

    observation: Observation | None
    tool: str | None = None


@runtime_checkable
class Policy(Protocol):
    """The model, on whatever engine."""

    async def begin(self, task: Task) -> None:
        """Take the prompt. Called once."""

    async def act(self) -> AssistantTurn | None:
        """Generate the next turn; ``None`` if the token budget has no room for one.

        Raises:
            InfrastructureError: The engine cannot be reached or refused for good.
        """

    async def observe(self, observation: Observation) -> bool:
        """Append an observation; ``False`` if it does not fit (nothing was added then)."""


class Environment(ABC):
    """What one trajectory acts on: it owns its tools' state, which lives as long as the trajectory.

    Attributes:
        dialect: How the policy opens and closes its turns.
        limits: When the episode ends.
    """

    dialect: Dialect
    limits: Limits

    def parse(self, turn: AssistantTurn) -> Action | None:
        """Return the action of ``turn``; override it for another grammar."""
        return parse_action(turn.text)

    def preflight(self, data_source: str) -> None:  # noqa: B027 - not every one needs something
        """Look whether it has what tasks of ``data_source`` need, before a run begins.

        Nothing is sent; it may block for as long as it takes to open a file.

        Raises:
            ValueError: A setting, key or file is missing or wrong; the message names it.
        """

    @abstractmethod
    async def open(self, task: Task) -> None:
        """Prepare for ``task``. Runs while the policy takes in the prompt."""

    @abstractmethod
    async def step(self, action: Action) -> Step:
        """Carry out a code, tool or malformed action. A recoverable error is an observation."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything; idempotent, and quiet about what is gone already."""


class Tool(ABC):
    """Something the agent can do, for the length of one trajectory.

    Attributes:
        name: What the model calls it.
        schema: JSON schema of its arguments.
    """

    name: str
    schema: Mapping[str, Any] = {"type": "object", "properties": {}}

    def preflight(self, data_source: str) -> None:  # noqa: B027 - most tools need nothing
        """Look whether it has what it needs, as :meth:`Environment.preflight`.

        Raises:
            ValueError: A setting, key or file is missing or wrong; the message names it.
        """

    async def open(self, task: Task) -> None:  # noqa: B027 - most tools need no preparation
        """Prepare for ``task``; may run while the first turn is generated."""

    @abstractmethod
    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Do it. Mistakes in ``arguments`` come back as an observation with ``error``.

        Raises:
            InfrastructureError: The tool's service failed.
        """

    async def close(self) -> None:  # noqa: B027 - most tools hold nothing
        """Release what :meth:`open` took; idempotent."""


@dataclass(frozen=True, slots=True)
class RewardResult:
    """A score and the named parts that it is made of (all finite numbers)."""

    score: float
    parts: Mapping[str, float]


class Reward(Protocol):
    """Scores a finished trajectory."""

    async def score(self, task: Task, trajectory: Trajectory) -> RewardResult:
        """Return the reward of ``trajectory``; only its assistant turns are looked at."""
