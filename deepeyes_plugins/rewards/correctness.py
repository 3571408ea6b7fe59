"""Accuracy of an answer: rules first, then computer algebra, then the judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from deepeyes_plugins.judge.contracts import Comparison, Judge, PromptName
from deepeyes_plugins.rewards.algebra import Algebra
from deepeyes_plugins.rewards.guards import lists_alternatives, speaks_to_judge, spells_protocol
from deepeyes_plugins.rewards.mathematics import bare_mathematics
from deepeyes_plugins.rewards.rules import rule_verdict
from deepeyes_plugins.rewards.settings import ScoreSettings

Rules = Callable[[str, str], bool | None]
"""``rules(answer, ground_truth)``: whether the answer is correct; ``None`` if undecided."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an answer is correct, and who decided.

    Attributes:
        correct: Whether the answer is correct.
        guarded: Whether a guard refused it before the judge.
        undecided: Whether neither rules nor computer algebra could decide, without a judge.
        judged: Whether a judge decided.
        cached: Whether the judge's verdict was cached.
        calls: Number of requests to the judge.
        seconds: Seconds that the judge took.
    """

    correct: bool
    guarded: bool = False
    undecided: bool = False
    judged: bool = False
    cached: bool = False
    calls: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Accuracy:
    """Decides the answers of one data source.

    Attributes:
        settings: Who decides, and whether to use computer algebra.
        judge: Decides what rules cannot; ``None`` for rules alone.
        prompt: The judge's prompt.
        rules: The rules.
        algebra: Computer algebra, if enabled by the settings.
    """

    settings: ScoreSettings
    judge: Judge | None = None
    prompt: PromptName = "answer"
    rules: Rules = rule_verdict
    algebra: Algebra = field(default_factory=Algebra)

    async def decide(self, question: str, ground_truth: str, answer: str | None) -> Decision:
        """Decide one answer.

        Args:
            question: The plain question.
            ground_truth: The reference answer, not empty.
            answer: The model's answer; without one the decision is wrong.

        Raises:
            JudgeUnavailableError: The judge is needed and cannot be reached.
        """
        if not answer or not answer.strip():
            return Decision(False)
        known = f"{question}\n{ground_truth}"
        # Guards first: rules may only read the beginning of an answer.
        if spells_protocol(answer, known) or lists_alternatives(answer, ground_truth, self.rules):
            return Decision(False, guarded=True)
        judge = None if self.settings.decide == "rules" else self.judge
        if self.settings.decide != "judge":
            sure = self.rules(answer, ground_truth)
            if sure is not None:
                return Decision(sure)
        equal = None
        if self.settings.math_verify:
            equal = await self.algebra.equal(
                answer, ground_truth, timeout=self.settings.math_timeout
            )
        if equal:
            return Decision(True)
        if speaks_to_judge(answer, known, ground_truth):
            return Decision(False, guarded=True)
        if judge is None:
            return Decision(False, undecided=equal is None)
        if self.prompt == "equivalence":
            answer = bare_mathematics(answer)
        verdict = await judge.compare(self.prompt, Comparison(question, ground_truth, answer))
        return Decision(
            verdict.correct,
            judged=True,
            cached=verdict.cached,
            calls=verdict.calls,
            seconds=verdict.seconds,
        )
