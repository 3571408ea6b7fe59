"""What a judge is asked and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from deepeyes_plugins.rollout.contracts import InfrastructureError

PromptName = Literal["answer", "equivalence"]
"""``answer``: compare with the reference, whatever the kind of question (perception, search).
``equivalence``: are two mathematical answers the same (reason)."""


class JudgeUnavailableError(InfrastructureError):
    """No judge could be reached, or none gave a verdict that can be read."""


class JudgeOutageError(JudgeUnavailableError):
    """No judge has answered anything for as long as the settings are patient: stop the run."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One answer to be judged.

    Attributes:
        question: The plain question, without system prompt or placeholders.
        ground_truth: The reference answer.
        answer: The model's answer, not empty.
    """

    question: str
    ground_truth: str
    answer: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge decided.

    Attributes:
        correct: The answer is equivalent to the reference.
        cached: It was known already, or an equal comparison was under way: no call was made for it.
        seconds: How long the verdict took, waiting included.
        calls: Requests that it took, retries included; 0 if cached.
    """

    correct: bool
    cached: bool = False
    seconds: float = 0.0
    calls: int = 1


class Judge(Protocol):
    """Decides whether an answer is right; shared by all trajectories of an event loop."""

    async def compare(self, prompt: PromptName, comparison: Comparison) -> Verdict:
        """Judge one answer.

        Raises:
            JudgeOutageError: The judge is down and the settings' patience is at its end.
            JudgeUnavailableError: No verdict could be had, within what the settings allow.
        """

    async def aclose(self) -> None:
        """Close every connection."""
