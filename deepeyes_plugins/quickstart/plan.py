"""How much the quickstart does, and where it keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepeyes_plugins.files import whole_file
from deepeyes_plugins.quickstart.engines import EngineName


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of one run.

    Attributes:
        folder: Where everything goes, relative to the working directory.
        sft_examples: Demonstrations.
        sft_steps: Optimiser steps, where they are not those of the recipe.
        rl_examples: Questions for reinforcement learning.
        rl_steps: Its steps, where they are not those of the recipe.
        heldout: Questions that no training sees.
        blind: How many of them are repeated with the sandbox switched off.
        probe_examples: Pictures that the leak probe learns from.
        claims: Whether the run is long enough for its accuracies to mean something.
        engine: What generates.
    """

    folder: Path
    sft_examples: int
    sft_steps: int | None
    rl_examples: int
    rl_steps: int | None
    heldout: int
    blind: int
    probe_examples: int
    claims: bool
    engine: EngineName = EngineName.VLLM

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "folder": str(self.folder)}


FULL = Plan(
    folder=Path("runs/quickstart"),
    sft_examples=2000,
    sft_steps=None,
    rl_examples=256,
    rl_steps=None,
    heldout=400,
    blind=200,
    probe_examples=2000,
    claims=True,
)
FAST = Plan(
    folder=Path("runs/quickstart-fast"),
    sft_examples=64,
    sft_steps=4,
    rl_examples=16,
    rl_steps=1,
    heldout=8,
    blind=4,
    probe_examples=64,
    claims=False,
)


class RunState:
    """Results of finished stages, kept in ``state.json`` so that a run can be resumed."""

    def __init__(self, plan: Plan) -> None:
        """Read the state of an earlier run of the same plan; another plan's is ignored."""
        self._path = plan.folder / "state.json"
        self._plan = plan.as_json()
        self.stages: dict[str, dict[str, Any]] = {}
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(stored, dict) and stored.get("plan") == self._plan:
            self.stages = stored["stages"]

    def finish(self, stage: str, result: dict[str, Any]) -> None:
        """Record a finished stage; a crash leaves the old record or the new one, never half."""
        self.stages[stage] = result
        text = json.dumps({"plan": self._plan, "stages": self.stages}, indent=1)
        with whole_file(self._path) as partial:
            partial.write_text(text, encoding="utf-8")
