"""Intervals hold what they promise, and the tests of two runs are the textbook's."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_plugins.report.statistics import compare, holm, mean_interval


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60))
def test_an_interval_holds_the_mean(scores: list[float]) -> None:
    interval = mean_interval(scores, range(len(scores)))
    assert 0 <= interval.low <= sum(scores) / len(scores) <= interval.high <= 1


def test_an_interval_is_as_wide_as_the_binomial_says() -> None:
    scores = [1.0] * 300 + [0.0] * 100
    interval = mean_interval(scores, range(400))
    width = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert interval.low == pytest.approx(0.75 - width, abs=0.005)
    assert interval.high == pytest.approx(0.75 + width, abs=0.005)
    assert mean_interval(scores, range(400)) == interval  # The seed is fixed.


def test_variants_of_one_question_do_not_make_it_surer() -> None:
    dice = random.Random(1)
    scores = [float(dice.random() < 0.6) for _ in range(100)]
    once = mean_interval(scores, range(100))
    four = mean_interval(
        [score for score in scores for _ in range(4)], [i // 4 for i in range(400)]
    )
    assert four.high - four.low == pytest.approx(once.high - once.low, abs=0.02)


def test_mcnemar() -> None:
    # 2 gained and 10 lost: twice the binomial tail of at most 2 in 12.
    new = [1.0] * 2 + [0.0] * 10 + [1.0] * 30
    old = [0.0] * 2 + [1.0] * 10 + [1.0] * 30
    paired = compare(new, old, range(42))
    assert (paired.gained, paired.lost) == (2, 10)
    assert paired.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert paired.difference == pytest.approx(-8 / 42)
    assert paired.interval.high < 0
    assert compare(old, old, range(42)).p_value == 1


def test_ten_variants_that_move_together_are_one_piece_of_evidence() -> None:
    alone = compare([1.0] * 10, [0.0] * 10, range(10))
    together = compare([1.0] * 10, [0.0] * 10, [0] * 10)
    assert alone.p_value < 0.01 < 0.9 < together.p_value


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
