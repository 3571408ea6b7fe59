"""Contracts of the agent core: task, policy, environment, tool and reward."""

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
from deepeyes_plugins.renamed import renamed_keys

if TYPE_CHECKING:
    from deepeyes_plugins.rollout.trajectory import Trajectory


class InfrastructureError(Exception):
    """A service failed (server down, timeout), not the model.

    It is counted apart from model errors and never scores as a wrong answer.
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
        """The plain question, for judges; the model sees :attr:`messages`.

        It is that of the data set, else the last user message without its prompt template.
        """
        known = self.metadata.get("question")
        if isinstance(known, str) and known.strip():
            return plain_question(known)
        asked = (message.text for message in reversed(self.messages) if message.role == "user")
        return plain_question(next(asked, ""))


class Limits(BaseModel):
    """Limits that end a trajectory."""

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
    turn_timeout: float = Field(
        7200.0,
        gt=0,
        description="Seconds for one turn, including pauses of the engine for training. A longer "
        "turn is an infrastructure error: the trajectory counts as failed and has no score.",
    )
    images: int = Field(
        32, ge=0, description="Images that observations may add; the next one ends the episode."
    )
    infrastructure_errors: int = Field(
        1,
        ge=0,
        description="Tool calls that may fail with an infrastructure error (sandbox or search "
        "down); one more ends the trajectory, which then counts as failed and has no score.",
    )

    _renamed = renamed_keys("limits", engine_patience="turn_timeout")


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """What the policy produced in one turn.

    Attributes:
        text: The whole turn, including the prefilled ``<think>`` and the closing tag.
        finish_reason: ``stop`` (end of turn or stop string) or ``length`` (truncated).
        tokens: Generated tokens, without the prefill.
        prompt_tokens: Prompt tokens of the request; 0 if the engine does not report them.
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
        error: Why the action failed; ``None`` if it succeeded.
        infrastructure: Whether the error is an infrastructure error, not a model error.
        figures: Metrics of the call by name; the model does not see them.
    """

    parts: tuple[Part, ...]
    error: str | None = None
    infrastructure: bool = False
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def message(self) -> Message:
        """The observation as a message."""
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
        """Start with the prompt of ``task``. Called once."""

    async def act(self) -> AssistantTurn | None:
        """Generate the next turn; ``None`` if the token budget has no room for one.

        Raises:
            InfrastructureError: The engine cannot be reached or rejects the request.
        """

    async def observe(self, observation: Observation) -> bool:
        """Append an observation; return ``False``, appending nothing, if it does not fit."""


class Environment(ABC):
    """What one trajectory acts on; owns the state of its tools.

    Attributes:
        dialect: How the policy opens and closes its turns.
        limits: When the episode ends.
    """

    dialect: Dialect
    limits: Limits

    def parse(self, turn: AssistantTurn) -> Action | None:
        """Return the action of ``turn``. Override this for another grammar."""
        return parse_action(turn.text)

    def preflight(self, data_source: str) -> None:  # noqa: B027 - optional
        """Check before a run that settings, keys and files for ``data_source`` are present.

        Sends no request; may block to open a file.

        Raises:
            ValueError: A setting, key or file is missing or wrong; the message names it.
        """

    @abstractmethod
    async def open(self, task: Task) -> None:
        """Prepare for ``task``. Runs concurrently with the first turn."""

    @abstractmethod
    async def step(self, action: Action) -> Step:
        """Execute a code, tool or malformed action. A recoverable error is an observation."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything; idempotent, and silent about what is already released."""


class Tool(ABC):
    """Something the agent can do, for the length of one trajectory.

    Attributes:
        name: What the model calls it.
        schema: JSON schema of its arguments.
    """

    name: str
    schema: Mapping[str, Any] = {"type": "object", "properties": {}}

    def preflight(self, data_source: str) -> None:  # noqa: B027 - optional
        """Check settings, keys and files, as :meth:`Environment.preflight`.

        Raises:
            ValueError: A setting, key or file is missing or wrong; the message names it.
        """

    async def open(self, task: Task) -> None:  # noqa: B027 - optional
        """Prepare for ``task``. May run concurrently with the first turn."""

    @abstractmethod
    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Call the tool. Wrong ``arguments`` are an observation with ``error``.

        Raises:
            InfrastructureError: The tool's service failed.
        """

    async def close(self) -> None:  # noqa: B027 - optional
        """Release what :meth:`open` acquired; idempotent."""


@dataclass(frozen=True, slots=True)
class RewardResult:
    """A score and its named parts (all finite numbers)."""

    score: float
    parts: Mapping[str, float]


class Reward(Protocol):
    """Scores a finished trajectory."""

    async def score(self, task: Task, trajectory: Trajectory) -> RewardResult:
        """Return the reward of ``trajectory``, of which only assistant turns are read."""
