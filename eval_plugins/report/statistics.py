"""Bootstrap confidence intervals, and significance tests of two runs on the same samples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import binomtest

SEED = 20251107
"""Fixed seed, so that reports are reproducible."""
DRAWS = 4000
LEVEL = 0.95
_AT_A_TIME = 200


class Interval(BaseModel):
    """A confidence interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Return the interval in another unit."""
        return Interval(low=self.low * factor, high=self.high * factor)


class Paired(BaseModel):
    """Paired comparison of two runs on the same samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int
    difference: float = Field(description="Mean of the new scores minus that of the old, −1 to 1.")
    interval: Interval
    gained: int = Field(description="Samples that are right in the new run only.")
    lost: int = Field(description="Samples that are right in the old run only.")
    p_value: float = Field(description="Two-sided, under the hypothesis of no difference.")


def mean_interval(scores: Sequence[float], clusters: Sequence[Hashable]) -> Interval:
    """Return the percentile bootstrap interval of a mean, at 95 %.

    Samples of one cluster (variants of one question) are resampled together, since they are not
    independent. If all scores are 0 or all are 1, the exact (Clopper-Pearson) bound for the number
    of clusters is returned, because resampling would give an interval of width zero.

    Args:
        scores: One per sample, 0 to 1; at least one.
        clusters: The cluster of each sample, in the same order.
    """
    sums, counts = _by_cluster(scores, clusters)
    if len(sums) == 1 and 0 < sums[0] < counts[0]:
        return Interval(low=0.0, high=1.0)  # One cluster says nothing about the variance.
    if sums.sum() in (0, counts.sum()):
        bound = ((1 - LEVEL) / 2) ** (1 / len(sums))
        return Interval(low=bound, high=1.0) if sums.sum() else Interval(low=0.0, high=1 - bound)
    return _percentiles(_resampled_means(sums, counts))


def compare(new: Sequence[float], old: Sequence[float], clusters: Sequence[Hashable]) -> Paired:
    """Compare two runs on the same samples, in the same order; at least one sample.

    The test is McNemar's exact test. For clustered samples it is the sign-flip test on the
    clusters' differences, which equals McNemar's for clusters of one.
    """
    differences = np.asarray(new, dtype=float) - np.asarray(old, dtype=float)
    right_now = np.asarray(new) >= 0.5
    right_before = np.asarray(old) >= 0.5
    gained = int((right_now & ~right_before).sum())
    lost = int((right_before & ~right_now).sum())
    sums, counts = _by_cluster(differences.tolist(), clusters)
    if not differences.any():
        interval, p_value = Interval(low=0.0, high=0.0), 1.0
    else:
        interval = _percentiles(_resampled_means(sums, counts))
        binary = set(np.unique(np.abs(differences))) <= {0.0, 1.0}
        p_value = (
            float(binomtest(gained, gained + lost).pvalue)
            if binary and len(sums) == len(differences)
            else _sign_flip(sums)
        )
    return Paired(
        samples=len(differences),
        difference=float(differences.mean()),
        interval=interval,
        gained=gained,
        lost=lost,
        p_value=p_value,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple testing by Holm's method; the order is preserved."""
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, p_values[position] * (len(p_values) - rank)))
        corrected[position] = largest
    return corrected


def _by_cluster(
    scores: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum and the size of each cluster."""
    numbers: dict[Hashable, int] = {}
    positions = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    sums = np.bincount(positions, weights=scores, minlength=len(numbers))
    return sums.astype(float), np.bincount(positions, minlength=len(numbers)).astype(float)


def _resampled_means(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    random = np.random.default_rng(SEED)
    means = []
    for start in range(0, DRAWS, _AT_A_TIME):
        size = (min(_AT_A_TIME, DRAWS - start), len(sums))
        drawn = random.integers(0, len(sums), size=size, dtype=np.int32)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high))


def _sign_flip(sums: NDArray[np.float64]) -> float:
    moved = sums[sums != 0]
    if not len(moved):
        return 1.0
    random = np.random.default_rng(SEED)
    observed = abs(moved.sum())
    extreme = 0
    for start in range(0, DRAWS, _AT_A_TIME):
        size = (min(_AT_A_TIME, DRAWS - start), len(moved))
        signs = random.choice((-1.0, 1.0), size=size)
        extreme += int((np.abs(signs @ moved) >= observed - 1e-9).sum())
    return (extreme + 1) / (DRAWS + 1)
