"""The DeepEyes scores, made of named parts."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from deepeyes_plugins.rewards.accuracy import rule_accuracy, starts_with_truth
from deepeyes_plugins.rewards.form import final_answer, is_well_formed
from deepeyes_plugins.rollout.contracts import RewardResult, Task
from deepeyes_plugins.rollout.trajectory import Trajectory


class ScoreWeights(BaseModel):
    """Weights of a score; the defaults are the published ones (Visual-Agent/DeepEyesV2)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accuracy: float = Field(0.8, ge=0, description="Weight of the accuracy part.")
    form: float = Field(0.2, ge=0, description="Weight of the format part.")
    search_penalty: float = Field(
        0.0, ge=0, le=1, description="Share of the accuracy that any search call costs."
    )
    longest_answer: int | None = Field(
        None, ge=1, description="An answer of this many characters or more scores nothing."
    )
    prefix: bool = Field(
        False, description="An answer that starts with the reference is right as well."
    )
    tool_calls: bool = Field(False, description="Ask for balanced <tool_call> tags as well.")


class WeightedScore:
    """accuracy · weight · (1 − penalty) + format · weight."""

    def __init__(self, weights: ScoreWeights) -> None:
        """Use ``weights``."""
        self._weights = weights

    async def score(self, task: Task, trajectory: Trajectory) -> RewardResult:
        """Score the assistant's turns of ``trajectory``.

        Returns:
            The score in [0, 1] and the parts ``acc``, ``format`` (0 or 1) and ``search_penalty``.
        """
        weights = self._weights
        turns = trajectory.assistant_turns
        answer = final_answer(turns)
        accuracy = rule_accuracy(answer, task.ground_truth)
        if weights.prefix and starts_with_truth(answer, task.ground_truth):
            accuracy = 1.0
        form = float(is_well_formed(turns, tool_calls=weights.tool_calls))
        longest = weights.longest_answer
        if longest is not None and answer is not None and len(answer) >= longest:
            accuracy = form = 0.0
        searched = any(name in ("search", "image_search") for name in trajectory.tool_calls)
        penalty = weights.search_penalty * searched
        score = weights.accuracy * accuracy * (1 - penalty) + weights.form * form
        return RewardResult(score, {"acc": accuracy, "format": form, "search_penalty": penalty})
