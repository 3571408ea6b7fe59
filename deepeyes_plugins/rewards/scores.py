"""The DeepEyes score: accuracy, format and tool use as named parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepeyes_plugins.rewards.correctness import Accuracy
from deepeyes_plugins.rewards.format import final_answer, is_well_formed
from deepeyes_plugins.rewards.tool_use import (
    effective_calls,
    has_image,
    is_idle_code,
    searched,
)
from deepeyes_plugins.rollout.contracts import RewardResult, Task
from deepeyes_plugins.rollout.trajectory import Trajectory

PARTS = (
    "acc",
    "format",
    "tool",
    "cumulative_tool",
    "search_penalty",
    "answered",
    "answer_too_long",
    "answer_refused",
    "undecided",
    "idle_code",
    "judged",
    "judge_cached",
    "judge_calls",
    "judge_seconds",
)
"""Parts of every DeepEyes score; see :meth:`DeepEyesScore.score`."""

RIGHT = 0.5
"""Accuracy from which tools are rewarded (DeepEyes: above it; accuracy is 0 or 1 here)."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """Format of the trajectories of a data source.

    Attributes:
        answer: Extracts the answer from the assistant's turns.
        well_formed: The format check.
        malformed: Format part of a failed check: 0, or −1 in DeepEyes V1.
        formed: Format part of a passed check: 1, or 0 in DeepEyes V1.
        needs_image: Whether only calls that return an image earn the tool bonus, as in V1.
    """

    answer: Callable[[Sequence[str]], str | None] = final_answer
    well_formed: Callable[[Sequence[str]], bool] = is_well_formed
    malformed: float = 0.0
    formed: float = 1.0
    needs_image: bool = False


class DeepEyesScore:
    """Accuracy, format and tool use, weighted by settings."""

    parts = PARTS

    def __init__(self, accuracy: Accuracy, grammar: Grammar | None = None) -> None:
        """Score by ``accuracy.settings``.

        Args:
            accuracy: Decides whether an answer is correct.
            grammar: Format of the trajectories; DeepEyesV2 by default.
        """
        self._accuracy = accuracy
        self._grammar = grammar or Grammar()

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest score."""
        settings, grammar = self._accuracy.settings, self._grammar
        bonus = settings.tool + settings.cumulative_tool
        return (
            settings.format * grammar.malformed,
            settings.accuracy + settings.format * grammar.formed + bonus,
        )

    @property
    def by_rules(self) -> bool:
        """Whether rules decide accuracy only because no judge is configured."""
        return self._accuracy.settings.decide == "auto" and self._accuracy.judge is None

    async def score(self, task: Task, trajectory: Trajectory) -> RewardResult:
        """Score the assistant's turns of ``trajectory``.

        Returns:
            The score within :attr:`bounds` and its parts: ``acc`` (0 or 1), ``format`` (0 or 1;
            −1 or 0 in DeepEyes V1), ``tool`` (0 or 1), ``cumulative_tool`` (0 to 1),
            ``search_penalty`` (the deducted share), ``answered``, ``answer_too_long``,
            ``answer_refused`` (by a guard) and ``undecided`` (by rules, without a judge; counts as
            wrong; 0 or 1 each), ``idle_code`` (turns whose code computes nothing), ``judged`` and
            ``judge_cached`` (0 or 1), ``judge_calls`` and ``judge_seconds``.

        Raises:
            JudgeUnavailableError: The judge is needed and cannot be reached.
        """
        settings, grammar = self._accuracy.settings, self._grammar
        turns = trajectory.assistant_turns
        answer = grammar.answer(turns)
        longest = settings.longest_answer
        too_long = longest is not None and answer is not None and len(answer) >= longest
        decision = await self._accuracy.decide(
            task.question, task.ground_truth, None if too_long else answer
        )
        accuracy = float(decision.correct)
        well_formed = not too_long and grammar.well_formed(turns)
        form = grammar.formed if well_formed else grammar.malformed

        calls = effective_calls(trajectory)
        counted = [call for call in calls if has_image(call)] if grammar.needs_image else calls
        right = accuracy > RIGHT
        tool = float(right and bool(counted))
        cumulative = right * min(len(calls) / settings.cumulative_calls, 1.0)
        penalty = settings.search_penalty * searched(trajectory)
        score = (
            settings.accuracy * accuracy * (1 - penalty)
            + settings.format * form
            + settings.tool * tool
            + settings.cumulative_tool * cumulative
        )
        parts = {
            "acc": accuracy,
            "format": form,
            "tool": tool,
            "cumulative_tool": cumulative,
            "search_penalty": penalty,
            "answered": float(bool(answer)),
            "answer_too_long": float(too_long),
            "answer_refused": float(decision.guarded),
            "undecided": float(decision.undecided),
            "idle_code": float(sum(map(is_idle_code, trajectory.turns))),
            "judged": float(decision.judged),
            "judge_cached": float(decision.cached),
            "judge_calls": float(decision.calls),
            "judge_seconds": decision.seconds,
        }
        return RewardResult(score, parts)
