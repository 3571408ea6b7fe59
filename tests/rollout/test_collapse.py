"""The interaction-collapse alarm: silent while a policy becomes sparing, loud when it gives up."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.rollout.collapse import ALL_TOOLS, CallHistory, Collapse, CollapseSettings


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


levels = st.floats(0.0, 10.0)


@given(st.lists(levels, max_size=30), st.integers(1, 6))
def test_a_history_that_never_falls_is_no_collapse(calls: list[float], window: int) -> None:
    assert first_alarm(sorted(calls), CollapseSettings(window=window)) is None


@given(st.floats(0.3, 10.0), st.integers(1, 6), st.floats(0.05, 0.95))
def test_giving_up_is_noticed_within_a_window(level: float, window: int, share: float) -> None:
    settings = CollapseSettings(window=window, share=share)
    step = first_alarm([level] * window + [0.0] * window, settings)
    assert step == pytest.approx(2 * window)
