"""Detection of tool-use collapse: a policy that stops using tools during training.

Fewer calls alone are no collapse: the authors' published run of DeepEyesV2 went from 1.45 calls per
sample to 1.13 over 60 steps while it improved. Calls that fall toward 0 are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

ALL_TOOLS = "all tools"
"""Name for the sum of all tools' calls."""


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
        description=f"Tools to watch, {ALL_TOOLS!r} for their sum; empty: that and every tool.",
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

    def __str__(self) -> str:
        return (
            f"calls of {self.tool} fell to {self.level:.2f} per sample, from {self.best:.2f} at "
            "their best"
        )


class CallHistory:
    """Calls per sample by training step, and detection of collapse."""

    def __init__(
        self, settings: CollapseSettings, calls: Mapping[int, Mapping[str, float]] | None = None
    ) -> None:
        """Start with the calls of an earlier part of the run; see :attr:`calls`."""
        self._settings = settings
        self.calls: dict[int, dict[str, float]] = {
            step: dict(by_tool) for step, by_tool in sorted((calls or {}).items())
        }

    def add(self, step: int, calls: Mapping[str, float]) -> list[Collapse]:
        """Add a step and return the tools that are collapsed at it.

        Args:
            step: Training step; later steps, from before a resume, are removed.
            calls: Calls per sample by tool; a tool that is missing was not called.
        """
        self.calls = {earlier: own for earlier, own in self.calls.items() if earlier < step}
        self.calls[step] = {ALL_TOOLS: sum(calls.values()), **calls}
        known = sorted({tool for own in self.calls.values() for tool in own})
        watched = self._settings.tools or known
        return [found for tool in watched if (found := self._collapse(tool))]

    def _collapse(self, tool: str) -> Collapse | None:
        window = self._settings.window
        series = [own.get(tool, 0.0) for own in self.calls.values()]
        levels = [
            sum(series[end - window : end]) / window for end in range(window, len(series) + 1)
        ]
        # Levels that share steps with the last one are no history of it.
        earlier = levels[:-window]
        if not earlier:
            return None
        best, level = max(earlier), levels[-1]
        if best < self._settings.least_calls or level >= self._settings.share * best:
            return None
        return Collapse(tool, level, best)
