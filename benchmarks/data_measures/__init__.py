"""What `benchmarks/data.py` measures: one module each, named in MEASURES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Figure:
    """A measured value beside its goal.

    Attributes:
        title: What was measured.
        value: The measured value.
        unit: Of the value.
        goal: The least value that is good enough.
        details: More numbers, for the JSON file.
    """

    title: str
    value: float
    unit: str
    goal: float
    details: dict[str, float] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether the goal is."""
        return self.value >= self.goal


Measure = Callable[[bool], Figure]

MEASURES: dict[str, str] = {
    "check": "data_measures.check:measure",
    "formatter": "data_measures.formatter:measure",
    "synthesize": "data_measures.sampling:synthesize",
    "filter": "data_measures.sampling:filter_questions",
}
"""Name to `module:function`; the function takes whether to be quick. Imported when asked for."""
