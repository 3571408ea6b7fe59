"""Histograms of integers in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

_DIGITS = 3
"""Significant digits of stored numbers: the error of a quantile is at most half a percent."""
_LONG_TAIL = 20
"""Ratio of maximum to median from which bins grow geometrically."""


@dataclass(slots=True)
class Distribution:
    """A distribution of non-negative integers.

    Attributes:
        counts: Occurrences by number, truncated to three significant digits.
        total: Sum of all numbers.
        minimum: The smallest number; 0 if there are none.
        maximum: The largest number; 0 if there are none.
    """

    counts: Counter[int] = field(default_factory=Counter)
    total: int = 0
    minimum: int = 0
    maximum: int = 0

    def add(self, number: int) -> None:
        """Count a number."""
        self.minimum = min(self.minimum, number) if self.counts else number
        self.maximum = max(self.maximum, number)
        self.total += number
        step = 10 ** max(0, len(str(number)) - _DIGITS)
        self.counts[number // step * step] += 1

    def merge(self, other: Distribution) -> None:
        """Add the numbers of another distribution."""
        if other.counts:
            self.minimum = min(self.minimum, other.minimum) if self.counts else other.minimum
            self.maximum = max(self.maximum, other.maximum)
            self.total += other.total
            self.counts.update(other.counts)

    @property
    def count(self) -> int:
        """Count of numbers."""
        return self.counts.total()

    @property
    def mean(self) -> float:
        """The mean; 0 if there are no numbers."""
        return self.total / self.count if self.counts else 0.0

    def quantile(self, share: float) -> int:
        """Return the quantile at ``share`` (0 to 1), to three significant digits."""
        wanted, seen = share * self.count, 0
        for number in sorted(self.counts):
            seen += self.counts[number]
            if seen >= wanted:
                return max(number, self.minimum)
        return self.maximum

    def bins(self, most: int = 30) -> list[tuple[int, int, int]]:
        """Return lower end, exclusive upper end and count of each bin of a histogram."""
        if not self.counts:
            return []
        low, high = min(self.counts), max(self.counts) + 1
        if self.maximum > _LONG_TAIL * max(1, self.quantile(0.5)):
            start = max(1, low)
            growth = (high / start) ** (1 / most)
            edges = [min(low, start), *(math.ceil(start * growth**at) for at in range(1, most))]
        else:
            width = max(1, math.ceil((high - low) / most))
            edges = list(range(low, high, width))
        edges = sorted({*edges, high})
        found = [0] * (len(edges) - 1)
        at = 0
        for number in sorted(self.counts):
            while number >= edges[at + 1]:
                at += 1
            found[at] += self.counts[number]
        return [(*ends, count) for ends, count in zip(pairwise(edges), found, strict=True)]

    def summary(self) -> dict[str, float]:
        """Return count, mean, extremes and quantiles for JSON."""
        return {
            "count": self.count,
            "mean": round(self.mean, 1),
            "minimum": self.minimum,
            "median": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "p99": self.quantile(0.99),
            "maximum": self.maximum,
        }
