"""Judge contracts: comparisons, verdicts and errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from deepeyes_plugins.rollout.contracts import InfrastructureError

PromptName = Literal["answer", "equivalence"]
"""``answer``: comparison with the reference answer (perception, search). ``equivalence``:
equivalence of mathematical answers (reason)."""


class JudgeUnavailableError(InfrastructureError):
    """No judge can be reached, or none returned a readable verdict."""


class JudgeOutageError(JudgeUnavailableError):
    """No judge has answered any request for ``outage_patience`` seconds; the run must stop."""


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
    """Decision of a judge.

    Attributes:
        correct: The answer is equivalent to the reference.
        cached: The verdict was cached, or coalesced with an equal comparison under way.
        seconds: Time until the verdict, waiting included.
        calls: Number of requests, retries included; 0 if cached.
    """

    correct: bool
    cached: bool = False
    seconds: float = 0.0
    calls: int = 1


class Judge(Protocol):
    """Decides whether an answer is correct; shared by all trajectories of an event loop."""

    async def compare(self, prompt: PromptName, comparison: Comparison) -> Verdict:
        """Judge one answer.

        Raises:
            JudgeOutageError: The judge has been down for longer than the settings allow.
            JudgeUnavailableError: There is no verdict after the retries of the settings.
        """

    async def aclose(self) -> None:
        """Close every connection."""
