"""Metrics of trajectories by data source: rates, shares, lengths and latencies.

A :class:`SampleRecord` is a small summary of a trajectory that is sent to the logging process,
where :class:`MetricsAggregator` computes metrics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from deepeyes_plugins.rollout.trajectory import EndReason, Trajectory

Outcome = Literal["success", "error", "infrastructure_error"]

OUTCOMES: tuple[Outcome, ...] = ("success", "error", "infrastructure_error")
PERCENTILES = (50, 95, 99)
ALL_SOURCES = "all"
"""Name for all data sources together, if there are several."""

JUDGED = "judged"
JUDGE_CACHED = "judge_cached"
JUDGE_CALLS = "judge_calls"
JUDGE_SECONDS = "judge_seconds"
"""Reward parts about the judge of one sample: whether it decided (0 or 1), whether from its cache
(0 or 1), number of requests, and seconds."""


class ToolCall(BaseModel):
    """One call of a tool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tool: str
    seconds: float = Field(description="Latency, including waiting.")
    outcome: Outcome
    figures: dict[str, float] = Field(
        default_factory=dict, description="Metrics that the tool reports for the call."
    )


class SampleRecord(BaseModel):
    """Summary of one trajectory. ``model_dump_json()`` has some hundred bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_source: str = ""
    end_reason: EndReason
    turns: int
    seconds: float
    images: int = Field(description="Images in observations.")
    generated_tokens: int
    response_tokens: int = Field(description="Generated tokens and tokens of observations.")
    refused_actions: int = Field(description="Malformed actions and unknown tools.")
    generate_seconds: list[float] = Field(description="Seconds of generation by turn.")
    tool_calls: list[ToolCall]
    rewards: dict[str, float] = Field(
        default_factory=dict, description="The score and its named parts."
    )

    @classmethod
    def of(
        cls, trajectory: Trajectory, response_tokens: int, rewards: Mapping[str, float]
    ) -> SampleRecord:
        """Summarize a scored trajectory."""
        turns = trajectory.turns
        return cls(
            data_source=trajectory.data_source,
            end_reason=trajectory.end_reason,
            turns=len(turns),
            seconds=trajectory.seconds,
            images=trajectory.images_returned,
            generated_tokens=sum(turn.tokens for turn in turns),
            response_tokens=response_tokens,
            refused_actions=sum(turn.error is not None and turn.tool is None for turn in turns),
            generate_seconds=[turn.generate_seconds for turn in turns],
            tool_calls=[
                ToolCall(
                    tool=turn.tool,
                    seconds=turn.tool_seconds,
                    outcome="infrastructure_error"
                    if turn.infrastructure_error
                    else "success"
                    if turn.error is None
                    else "error",
                    figures=turn.tool_figures,
                )
                for turn in turns
                if turn.tool is not None
            ],
            rewards=dict(rewards),
        )


class MetricsAggregator:
    """Computes metrics by data source and, if there are several, for all together.

    A tool that was called once in a run keeps its count, so that its curve falls to 0 instead of
    ending.
    """

    def __init__(self) -> None:
        self._tools: defaultdict[str, set[str]] = defaultdict(set)

    def of(self, samples: Sequence[SampleRecord]) -> dict[str, float]:
        """Return metrics named ``<data source>/<metric>``, as listed in ``docs/metrics.md``.

        Without events, rates and percentiles are omitted; counts and shares are 0.

        Args:
            samples: The samples of one step; without samples there are no metrics.
        """
        by_source: defaultdict[str, list[SampleRecord]] = defaultdict(list)
        for sample in samples:
            by_source[sample.data_source or "unknown"].append(sample)
        if len(by_source) > 1:
            by_source[ALL_SOURCES] = list(samples)
        return {
            f"{source}/{name}": value
            for source, group in by_source.items()
            for name, value in self._of_source(source, group).items()
        }

    def _of_source(self, source: str, samples: Sequence[SampleRecord]) -> dict[str, float]:
        calls = [call for sample in samples for call in sample.tool_calls]
        figures = {
            "samples": float(len(samples)),
            "turns/mean": mean(sample.turns for sample in samples),
            "turns/max": max(float(sample.turns) for sample in samples),
            "images/mean": mean(sample.images for sample in samples),
            "images/max": max(float(sample.images) for sample in samples),
            "generated_tokens/mean": mean(sample.generated_tokens for sample in samples),
            "response_tokens/mean": mean(sample.response_tokens for sample in samples),
            "response_tokens/max": max(float(sample.response_tokens) for sample in samples),
            "refused_actions": mean(sample.refused_actions for sample in samples),
            "tool_calls/total": len(calls) / len(samples),
            "samples_with_tool_calls": mean(bool(sample.tool_calls) for sample in samples),
            "samples_with_infrastructure_errors": mean(
                sample.end_reason is EndReason.INFRASTRUCTURE
                or any(call.outcome == "infrastructure_error" for call in sample.tool_calls)
                for sample in samples
            ),
        }
        for reason in EndReason:
            figures[f"end/{reason}"] = mean(sample.end_reason is reason for sample in samples)
        figures |= percentiles("trajectory_seconds", (sample.seconds for sample in samples))
        figures |= percentiles(
            "turn_seconds", (time for sample in samples for time in sample.generate_seconds)
        )
        figures |= self._of_tools(source, calls, len(samples))
        return figures | _of_rewards(samples)

    def _of_tools(self, source: str, calls: Sequence[ToolCall], samples: int) -> dict[str, float]:
        by_tool: defaultdict[str, list[ToolCall]] = defaultdict(list)
        for call in calls:
            by_tool[call.tool].append(call)
        self._tools[source] |= by_tool.keys()
        figures: dict[str, float] = {}
        for tool in sorted(self._tools[source]):
            own = by_tool[tool]
            figures[f"tool_calls/{tool}"] = len(own) / samples
            if own:
                for outcome in OUTCOMES:
                    figures[f"tool_{outcome}/{tool}"] = mean(
                        call.outcome == outcome for call in own
                    )
                figures |= percentiles(f"tool_seconds/{tool}", (call.seconds for call in own))
            reported: defaultdict[str, list[float]] = defaultdict(list)
            for call in own:
                for name, value in call.figures.items():
                    reported[name].append(value)
            figures |= {f"tool_{name}/{tool}": mean(values) for name, values in reported.items()}
        return figures


def _of_rewards(samples: Sequence[SampleRecord]) -> dict[str, float]:
    values: defaultdict[str, list[float]] = defaultdict(list)
    for sample in samples:
        for part, value in sample.rewards.items():
            values[part].append(value)
    judged = values.pop(JUDGED, [])
    cached = values.pop(JUDGE_CACHED, [])
    calls = values.pop(JUDGE_CALLS, [])
    seconds = values.pop(JUDGE_SECONDS, [])
    figures = {f"reward/{part}": mean(own) for part, own in values.items()}
    if judged:
        figures["judge/judged"] = mean(judged)
        figures["judge/calls"] = sum(calls) / len(samples)
        if any(judged):
            figures["judge/cache_hits"] = sum(cached) / sum(judged)
    asked = [time for time, count in zip(seconds, calls, strict=False) if count]
    return figures | percentiles("judge_seconds", asked)


def mean(values: Iterable[float]) -> float:
    """Return the mean of at least one value."""
    return fmean(values)


def percentiles(name: str, values: Iterable[float]) -> dict[str, float]:
    """Return ``<name>/p50``, ``p95`` and ``p99`` of ``values``; empty without values."""
    given = list(values)
    if not given:
        return {}
    found = np.percentile(given, PERCENTILES)
    return {
        f"{name}/p{percent}": float(value)
        for percent, value in zip(PERCENTILES, found, strict=True)
    }
