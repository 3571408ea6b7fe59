"""The alarm about tool use: silent while a policy becomes sparing or busy, loud when it gives up
its tools, or uses them up to the limits and answers worse."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.rollout.collapse import (
    ALL_TOOLS,
    CallHistory,
    Collapse,
    CollapseSettings,
    Runaway,
)


def first_alarm(
    calls: Iterable[float], settings: CollapseSettings | None = None, tool: str = "python"
) -> int | None:
    """Step at which the alarm goes off for the first time."""
    history = CallHistory(settings or CollapseSettings())
    for step, value in enumerate(calls, 1):
        if history.add(step, {tool: value}):
            return step
    return None


def test_the_published_decline_is_healthy() -> None:
    decline = np.linspace(1.45, 1.13, 60)
    noise = np.random.default_rng(1).normal(0, 0.1, 60)
    assert first_alarm(decline + noise) is None


def test_calls_that_fall_toward_zero_are_a_collapse_before_they_are_there() -> None:
    falling = list(np.linspace(1.45, 0.0, 60))
    step = first_alarm(falling)
    assert step is not None
    assert 0.4 < falling[step - 1] < 0.8


def test_a_single_odd_step_is_no_collapse() -> None:
    assert first_alarm([1.4] * 10 + [0.0] + [1.4] * 10) is None


def test_a_tool_that_was_hardly_used_cannot_collapse() -> None:
    assert first_alarm([0.1] * 20 + [0.0] * 20) is None
    assert first_alarm([0.3] * 20 + [0.0] * 20) is not None


def test_tools_are_watched_by_themselves_and_together() -> None:
    history = CallHistory(CollapseSettings(window=2))
    for step in range(1, 5):
        assert history.add(step, {"python": 1.0, "search": 0.5}) == []
    history.add(5, {"python": 1.2})
    found = history.add(6, {"python": 1.2})
    assert found == [Collapse("search", 0.0, 0.5)]
    assert "calls of search fell to 0.00 per sample, from 0.50" in str(found[0])

    history.add(7, {})
    assert {one.tool for one in history.add(8, {})} == {"python", "search", ALL_TOOLS}


def test_settings_choose_what_is_watched() -> None:
    settings = CollapseSettings(window=1, tools=[ALL_TOOLS])
    history = CallHistory(settings)
    history.add(1, {"search": 1.0})
    assert history.add(2, {"python": 1.0}) == []
    assert [one.tool for one in history.add(3, {})] == [ALL_TOOLS]


def test_a_resumed_run_goes_on_from_its_history_and_forgets_what_it_plays_again() -> None:
    earlier = CallHistory(CollapseSettings(window=1))
    for step, calls in enumerate([2.0, 2.0, 0.1], 1):
        earlier.add(step, {"python": calls})
    resumed = CallHistory(CollapseSettings(window=1), earlier.calls)
    assert resumed.add(3, {"python": 2.0}) == []
    assert resumed.add(4, {"python": 0.1}) != []
    assert list(resumed.calls) == [1, 2, 3, 4]

    resumed.add(2, {"python": 2.0})
    assert list(resumed.calls) == [1, 2]


STEPS = 60
Series = np.ndarray[tuple[int], np.dtype[np.float64]]


def first_runaway(
    calls: Series,
    endings: Series,
    accuracy: Series,
    *,
    noise: int | None = None,
    samples: int = 128,
) -> int | None:
    """Step of the first alarm about calls, endings at a limit and accuracy of a run.

    Args:
        calls: Expected calls per sample by step.
        endings: Probability that a trajectory ends at a limit.
        accuracy: Probability that it is right.
        noise: Seed with which ``samples`` of each step are drawn; without it there is no noise.
        samples: Samples of a step.
    """
    if noise is not None:
        random = np.random.default_rng(noise)
        calls = random.poisson(calls * samples) / samples
        endings, accuracy = (random.binomial(samples, p) / samples for p in (endings, accuracy))
    history = CallHistory(CollapseSettings())
    for step, (use, ended, right) in enumerate(zip(calls, endings, accuracy, strict=True), 1):
        found = history.add(step, {"python": use}, limit_endings=ended, accuracy=right)
        if any(isinstance(one, Runaway) for one in found):
            return step
    return None


def line(start: float, end: float) -> Series:
    return np.linspace(start, end, STEPS)


@pytest.mark.parametrize("noise", [None, *range(5)])
def test_calls_up_to_the_limit_with_worse_answers_run_away(noise: int | None) -> None:
    """Public runs of Qwen3.5: of 512 samples, first 15 and then 164 miss at the turn limit."""
    step = first_runaway(line(2.5, 5), line(15 / 512, 164 / 512), line(0.7, 0.5), noise=noise)
    assert step is not None
    assert 15 < step < 50


def test_a_run_that_learns_first_and_then_runs_away_is_noticed() -> None:
    half = STEPS // 2
    accuracy = np.r_[np.linspace(0.4, 0.7, half), np.linspace(0.7, 0.5, half)]
    endings = np.r_[np.full(half, 0.03), np.linspace(0.03, 0.4, half)]
    step = first_runaway(line(1.5, 4), endings, accuracy, noise=1)
    assert step is not None
    assert half < step < STEPS - 5


@pytest.mark.parametrize("noise", [None, *range(5)])
@pytest.mark.parametrize(
    ("calls", "endings", "accuracy"),
    [
        pytest.param((1, 4), (0.02, 0.25), (0.4, 0.7), id="learns to call more"),
        pytest.param((1, 4), (0.02, 0.03), (0.7, 0.5), id="calls more, ends in time"),
        pytest.param((2, 2), (0.05, 0.05), (0.5, 0.5), id="nothing but noise"),
        pytest.param((3, 1.5), (0.3, 0.05), (0.5, 0.6), id="becomes sparing"),
        pytest.param((2, 2), (0.02, 0.3), (0.7, 0.5), id="turns grow long, calls do not"),
    ],
)
def test_other_runs_do_not_run_away(
    noise: int | None,
    calls: tuple[float, float],
    endings: tuple[float, float],
    accuracy: tuple[float, float],
) -> None:
    assert first_runaway(line(*calls), line(*endings), line(*accuracy), noise=noise) is None


def test_hard_steps_here_and_there_do_not_run_away() -> None:
    """A step of hard questions has more calls, more endings at a limit and fewer right answers."""
    hard = np.arange(STEPS) % 10 == 9
    series = (np.where(hard, bad, good) for bad, good in ((5, 2), (0.3, 0.03), (0.3, 0.7)))
    assert first_runaway(*series, noise=1) is None


def test_without_an_accuracy_nothing_is_said_to_run_away() -> None:
    history = CallHistory(CollapseSettings(window=1))
    history.add(1, {"python": 1.0}, limit_endings=0.0, accuracy=0.9)
    assert history.add(2, {"python": 5.0}, limit_endings=0.9) == []
    (found,) = history.add(3, {"python": 5.0}, limit_endings=0.9, accuracy=0.1)
    assert found == Runaway((1.0, 5.0), (0.0, 0.9), (0.9, 0.1))
    assert "endings at a limit from 0% to 90%, and accuracy fell from 0.90 to 0.10" in str(found)


levels = st.floats(0.0, 10.0)


@given(st.lists(levels, max_size=30), st.integers(1, 6))
def test_a_history_that_never_falls_is_no_collapse(calls: list[float], window: int) -> None:
    assert first_alarm(sorted(calls), CollapseSettings(window=window)) is None


@given(st.floats(0.3, 10.0), st.integers(1, 6), st.floats(0.05, 0.95))
def test_giving_up_is_noticed_within_a_window(level: float, window: int, share: float) -> None:
    settings = CollapseSettings(window=window, share=share)
    step = first_alarm([level] * window + [0.0] * window, settings)
    assert step == pytest.approx(2 * window)
