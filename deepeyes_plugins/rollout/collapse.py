"""Detection of tool use that goes wrong during training: it collapses or runs away.

Fewer calls alone are no collapse: the authors' published run of DeepEyesV2 went from 1.45 calls per
sample to 1.13 over 60 steps while it improved. Calls that fall toward 0 are.

More calls alone are healthy, too. They run away where more and more trajectories end at a limit
instead of with an answer while accuracy falls, as in public runs of Qwen3.5, in which the misses at
the turn limit rose from 15 to 164 of 512.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

ALL_TOOLS = "all tools"
"""Name for the sum of all tools' calls."""

LIMIT_ENDINGS = "end/limits"
ACCURACY = "reward/acc"
"""Names of further series of a step beside the calls of its tools."""


class CollapseSettings(BaseModel):
    """When the alarm triggers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(False, description="Enable the alarm.")
    stop: bool = Field(
        False, description="Stop the run with a checkpoint when the alarm triggers; else only log."
    )
    share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Trigger below this share of the best earlier mean. The published run went "
        "down to 0.78 of it.",
    )
    window: int = Field(5, ge=1, description="Steps per mean.")
    least_calls: float = Field(
        0.2,
        ge=0,
        description="Minimum calls per sample of the best earlier mean: a tool that was hardly "
        "used cannot collapse.",
    )
    tools: list[str] = Field(
        default_factory=list,
        description=f"Tools to watch for collapse, {ALL_TOOLS!r} for their sum; empty: that and "
        "every tool.",
    )
    most_calls: float = Field(
        1.1,
        ge=1,
        description="Runaway tool use: calls per sample as a multiple of those at the best "
        "accuracy, with the two following conditions.",
    )
    limit_rise: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Rise of the share of trajectories that end at a limit since the best "
        "accuracy.",
    )
    accuracy_share: float = Field(
        0.9, gt=0, le=1, description="Share of the best accuracy below which it has fallen."
    )


@dataclass(frozen=True, slots=True)
class Collapse:
    """A tool whose calls have collapsed.

    Attributes:
        tool: Its name, or :data:`ALL_TOOLS`.
        level: Calls per sample now, mean of the last steps.
        best: The highest such mean before.
    """

    tool: str
    level: float
    best: float
    name: ClassVar[str] = "interaction collapse"
    advice: ClassVar[str] = (
        "tool failures (tool_error, tool_infrastructure_error, samples_with_infrastructure_errors; "
        "policies unlearn tools that fail), rewards of answers without tools (reward/acc, "
        "reward/format) and end reasons (end/)"
    )

    def __str__(self) -> str:
        return (
            f"calls of {self.tool} fell to {self.level:.2f} per sample, from {self.best:.2f} at "
            "their best"
        )


@dataclass(frozen=True, slots=True)
class Runaway:
    """Calls and endings at a limit that rose while accuracy fell.

    Each is a pair: the mean of the steps with the best accuracy, and of the last steps.

    Attributes:
        calls: Calls per sample.
        limit_endings: Share of trajectories that end at a limit.
        accuracy: Accuracy.
    """

    calls: tuple[float, float]
    limit_endings: tuple[float, float]
    accuracy: tuple[float, float]
    name: ClassVar[str] = "runaway tool use"
    advice: ClassVar[str] = (
        "end reasons (end/turns, end/tokens), whether calls repeat themselves, tool failures "
        "(tool_error) and what the reward pays for calls (reward/)"
    )

    def __str__(self) -> str:
        return (
            "since the best accuracy, calls rose from {:.2f} to {:.2f} per sample and endings at a "
            "limit from {:.0%} to {:.0%}, and accuracy fell from {:.2f} to {:.2f}"
        ).format(*self.calls, *self.limit_endings, *self.accuracy)


class CallHistory:
    """Calls per sample, endings at a limit and accuracy by training step, and their detection."""

    def __init__(
        self, settings: CollapseSettings, calls: Mapping[int, Mapping[str, float]] | None = None
    ) -> None:
        """Start with the series of an earlier part of the run; see :attr:`calls`."""
        self._settings = settings
        self.calls: dict[int, dict[str, float]] = {
            step: dict(series) for step, series in sorted((calls or {}).items())
        }

    def add(
        self,
        step: int,
        calls: Mapping[str, float],
        limit_endings: float | None = None,
        accuracy: float | None = None,
    ) -> list[Collapse | Runaway]:
        """Add a step and return what is wrong at it.

        Args:
            step: Training step; later steps, from before a resume, are removed.
            calls: Calls per sample by tool; a tool that is missing was not called.
            limit_endings: Share of trajectories that ended at a limit (turns, tokens, …).
            accuracy: Mean accuracy of the step; ``None`` if unknown.
        """
        self.calls = {earlier: own for earlier, own in self.calls.items() if earlier < step}
        further = {LIMIT_ENDINGS: limit_endings, ACCURACY: accuracy}
        self.calls[step] = {ALL_TOOLS: sum(calls.values()), **calls} | {
            name: value for name, value in further.items() if value is not None
        }
        known = sorted({name for own in self.calls.values() for name in own} - further.keys())
        watched = self._settings.tools or known
        found: list[Collapse | Runaway | None] = [self._collapse(tool) for tool in watched]
        return [one for one in (*found, self._runaway()) if one is not None]

    def _collapse(self, tool: str) -> Collapse | None:
        levels = self._levels(own.get(tool, 0.0) for own in self.calls.values())
        # Levels that share steps with the last one are no history of it.
        earlier = levels[: -self._settings.window]
        if not earlier:
            return None
        best, level = max(earlier), levels[-1]
        if best < self._settings.least_calls or level >= self._settings.share * best:
            return None
        return Collapse(tool, level, best)

    def _runaway(self) -> Runaway | None:
        names = (ALL_TOOLS, LIMIT_ENDINGS, ACCURACY)
        complete = [own for own in self.calls.values() if own.keys() >= set(names)]
        if not complete or complete[-1] is not list(self.calls.values())[-1]:
            return None
        calls, endings, accuracy = (self._levels(own[name] for own in complete) for name in names)
        earlier = accuracy[: -self._settings.window]
        if not earlier:
            return None
        best = max(range(len(earlier)), key=earlier.__getitem__)
        settings = self._settings
        if (
            calls[-1] <= settings.most_calls * calls[best]
            or endings[-1] < endings[best] + settings.limit_rise
            or accuracy[-1] >= settings.accuracy_share * accuracy[best]
        ):
            return None
        return Runaway(
            (calls[best], calls[-1]), (endings[best], endings[-1]), (accuracy[best], accuracy[-1])
        )

    def _levels(self, series: Iterable[float]) -> list[float]:
        """Means of each ``window`` consecutive steps."""
        values, window = list(series), self._settings.window
        return [sum(values[end - window : end]) / window for end in range(window, len(values) + 1)]
