"""Notice interaction collapse: a policy that gives up its tools while it is trained.

Fewer calls are no sign of it by themselves: the authors' published run of DeepEyesV2 went from 1.45
calls per sample to 1.13 over 60 steps while it became better. Calls that fall toward 0 are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

ALL_TOOLS = "all tools"
"""Name under which calls of whatever tool are watched."""


class CollapseSettings(BaseModel):
    """When the alarm goes off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(False, description="Watch at all.")
    stop: bool = Field(
        False, description="End the run when the alarm goes off, with a checkpoint; else only log."
    )
    share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Go off below this share of the best earlier level. The published healthy run "
        "went down to 0.78 of it.",
    )
    window: int = Field(5, ge=1, description="Steps whose mean is a level.")
    least_calls: float = Field(
        0.2,
        ge=0,
        description="Calls per sample that a level must once have had: a tool that was hardly "
        "ever used cannot collapse.",
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
    """Calls per sample by training step, and what has collapsed by them."""

    def __init__(
        self, settings: CollapseSettings, calls: Mapping[int, Mapping[str, float]] | None = None
    ) -> None:
        """Start with what an earlier part of the run had; see :attr:`calls`."""
        self._settings = settings
        self.calls: dict[int, dict[str, float]] = {
            step: dict(by_tool) for step, by_tool in sorted((calls or {}).items())
        }

    def add(self, step: int, calls: Mapping[str, float]) -> list[Collapse]:
        """Take in one step and return what has collapsed; while that lasts, each step returns it.

        Args:
            step: Training step; steps from there on, of a run that was resumed, are forgotten.
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
