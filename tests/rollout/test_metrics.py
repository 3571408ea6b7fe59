"""Figures over many trajectories: what is counted, and what they are when little happened."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepeyes_plugins.rollout import EndReason, Trajectory, TurnRecord
from deepeyes_plugins.rollout.metrics import MetricsAggregator, SampleRecord, ToolCall
from deepeyes_plugins.rollout.trajectory import PartRecord


def sample(**values: Any) -> SampleRecord:
    usual: dict[str, Any] = {
        "data_source": "perception",
        "end_reason": EndReason.ANSWER,
        "turns": 1,
        "seconds": 1.0,
        "images": 0,
        "generated_tokens": 10,
        "response_tokens": 10,
        "refused_actions": 0,
        "generate_seconds": [0.5],
        "tool_calls": [],
    }
    return SampleRecord(**usual | values)


def call(
    tool: str = "python", seconds: float = 1.0, outcome: Any = "success", **figures: float
) -> ToolCall:
    return ToolCall(tool=tool, seconds=seconds, outcome=outcome, figures=figures)


def test_a_record_takes_from_a_trajectory_what_figures_need() -> None:
    trajectory = Trajectory(
        task_id="7",
        data_source="search",
        end_reason=EndReason.TURNS,
        seconds=9.0,
        turns=[
            TurnRecord(
                text="…",
                tokens=5,
                action="code",
                tool="python",
                generate_seconds=1.0,
                tool_seconds=0.25,
                observation=[PartRecord(text="out"), PartRecord(image="ab"), PartRecord(image="c")],
            ),
            TurnRecord(text="…", tokens=7, tool="search", error="no query", tool_seconds=0.5),
            TurnRecord(text="…", tool="python", error="gone", infrastructure_error=True),
            TurnRecord(text="…", tool="search", tool_figures={"cache_hits": 1.0}),
            TurnRecord(text="…", action="malformed", error="no such tool"),
        ],
    )
    assert SampleRecord.of(trajectory, response_tokens=90, rewards={"acc": 1.0}) == sample(
        data_source="search",
        end_reason=EndReason.TURNS,
        turns=5,
        seconds=9.0,
        images=2,
        generated_tokens=12,
        response_tokens=90,
        refused_actions=1,
        generate_seconds=[1.0, 0.0, 0.0, 0.0, 0.0],
        tool_calls=[
            call("python", 0.25),
            call("search", 0.5, "error"),
            call("python", 0.0, "infrastructure_error"),
            call("search", 0.0, cache_hits=1.0),
        ],
        rewards={"acc": 1.0},
    )


def test_calls_are_counted_by_tool_with_what_became_of_them() -> None:
    figures = MetricsAggregator().of(
        [
            sample(tool_calls=[call(), call(outcome="error"), call("search")]),
            sample(tool_calls=[call(outcome="infrastructure_error")]),
            sample(end_reason=EndReason.INFRASTRUCTURE),
            sample(),
        ]
    )
    assert figures["perception/tool_calls/python"] == 3 / 4
    assert figures["perception/tool_calls/search"] == 1 / 4
    assert figures["perception/tool_calls/total"] == 1
    assert figures["perception/samples_with_tool_calls"] == 2 / 4
    assert figures["perception/tool_success/python"] == pytest.approx(1 / 3)
    assert figures["perception/tool_error/python"] == pytest.approx(1 / 3)
    assert figures["perception/tool_infrastructure_error/python"] == pytest.approx(1 / 3)
    assert figures["perception/tool_success/search"] == 1
    assert figures["perception/samples_with_infrastructure_errors"] == 2 / 4
    assert figures["perception/end/answer"] == 3 / 4
    assert figures["perception/end/infrastructure"] == 1 / 4
    assert figures["perception/end/no_action"] == 0


def test_what_a_tool_tells_of_its_calls_is_averaged_over_those_that_tell() -> None:
    calls = [
        call("search", cache_hits=1.0, results=10.0),
        call("search", cache_hits=0.0, results=0.0),
        call("search", outcome="infrastructure_error"),
        call("image_search", cache_hits=1.0),
    ]
    figures = MetricsAggregator().of([sample(tool_calls=calls)])
    assert figures["perception/tool_cache_hits/search"] == 1 / 2
    assert figures["perception/tool_results/search"] == 5
    assert figures["perception/tool_cache_hits/image_search"] == 1
    assert "perception/tool_results/image_search" not in figures


def test_a_tool_that_is_given_up_falls_to_zero_instead_of_vanishing() -> None:
    figures = MetricsAggregator()
    figures.of([sample(tool_calls=[call()])])
    later = figures.of([sample()])
    assert later["perception/tool_calls/python"] == 0
    assert "perception/tool_success/python" not in later


def test_percentiles_are_over_all_calls_of_the_step() -> None:
    calls = [call(seconds=float(seconds)) for seconds in range(101)]
    figures = MetricsAggregator().of([sample(tool_calls=calls[:40]), sample(tool_calls=calls[40:])])
    assert [figures[f"perception/tool_seconds/python/p{percent}"] for percent in (50, 95, 99)] == [
        50,
        95,
        99,
    ]


def test_the_judge_is_timed_where_it_was_asked_and_its_cache_counted() -> None:
    def judged(calls: int, cached: int, seconds: float, decided: int = 1) -> SampleRecord:
        return sample(
            rewards={
                "acc": 1.0,
                "judged": decided,
                "judge_cached": cached,
                "judge_calls": calls,
                "judge_seconds": seconds,
            }
        )

    figures = MetricsAggregator().of(
        [judged(2, 0, 3.0), judged(0, 1, 0.0), judged(0, 0, 0.0, decided=0)]
    )
    assert figures["perception/judge/judged"] == pytest.approx(2 / 3)
    assert figures["perception/judge/calls"] == pytest.approx(2 / 3)
    assert figures["perception/judge/cache_hits"] == 1 / 2
    assert figures["perception/judge_seconds/p50"] == 3.0
    assert figures["perception/reward/acc"] == 1
    assert "perception/reward/judge_seconds" not in figures


def test_several_data_sources_have_figures_together_as_well() -> None:
    figures = MetricsAggregator().of(
        [sample(data_source="search", turns=5), sample(turns=1), sample(turns=3)]
    )
    assert figures["search/turns/mean"] == 5
    assert figures["perception/turns/mean"] == 2
    assert figures["all/turns/mean"] == 3
    assert figures["all/samples"] == 3


def test_no_samples_give_no_figures() -> None:
    assert MetricsAggregator().of([]) == {}


seconds = st.floats(0, 1e4)
records = st.builds(
    sample,
    data_source=st.sampled_from(["", "perception", "search"]),
    end_reason=st.sampled_from(EndReason),
    turns=st.integers(0, 20),
    images=st.integers(0, 50),
    generate_seconds=st.lists(seconds, max_size=4),
    tool_calls=st.lists(
        st.builds(
            call,
            st.sampled_from(["python", "search"]),
            seconds,
            st.sampled_from(["success", "error", "infrastructure_error"]),
        ),
        max_size=6,
    ),
    rewards=st.dictionaries(st.sampled_from(["acc", "judged", "judge_seconds"]), st.floats(-2, 2)),
)


@given(st.lists(records, max_size=12))
def test_whatever_happened_figures_are_finite_and_shares_add_up(
    samples: list[SampleRecord],
) -> None:
    figures = MetricsAggregator().of(samples)
    assert all(math.isfinite(value) for value in figures.values())
    sources = {name.partition("/")[0] for name in figures}
    for source in sources:
        ends = [figures[f"{source}/end/{reason}"] for reason in EndReason]
        assert sum(ends) == pytest.approx(1)
        total = sum(figures.get(f"{source}/tool_calls/{tool}", 0) for tool in ("python", "search"))
        assert total == pytest.approx(figures[f"{source}/tool_calls/total"])
    if "all" in sources:
        counts = {source: figures[f"{source}/samples"] for source in sources - {"all"}}
        means = [figures[f"{source}/turns/mean"] for source in counts]
        assert figures["all/turns/mean"] == pytest.approx(
            np.average(means, weights=list(counts.values()))
        )


@given(records)
def test_a_record_survives_its_journey_as_json(record: SampleRecord) -> None:
    assert SampleRecord.model_validate_json(record.model_dump_json()) == record
