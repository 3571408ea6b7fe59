"""Watching a run from the trainer: which samples are looked at, and that nothing fails a step."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deepeyes_plugins.errors import SettingsError
from deepeyes_plugins.hosts.verl import metrics
from deepeyes_plugins.hosts.verl.metrics import (
    HISTORY_FILE,
    RunWatch,
    WatchSettings,
    sample_keys,
    watch_settings,
    whole_groups,
)
from deepeyes_plugins.hosts.verl.output import SAMPLE_FIELD, TrajectoryOutput
from deepeyes_plugins.hosts.verl.reward import TRAJECTORY_FIELD
from deepeyes_plugins.rollout import EndReason, Trajectory, TurnRecord
from deepeyes_plugins.rollout.metrics import SampleRecord


@dataclass
class Batch:
    """verl's keys and tags of a batch."""

    keys: list[str]
    tags: list[dict[str, Any]] = field(default_factory=list)
    partition_id: str = "train"

    def __post_init__(self) -> None:
        self.tags = self.tags or [{} for _ in self.keys]


class Queue:
    """Holds records like verl's queue, in the trainer's process."""

    def __init__(self, records: dict[str, str]) -> None:
        self.records = records

    def kv_batch_get(
        self, keys: list[str], partition_id: str, select_fields: list[str]
    ) -> dict[str, Any]:
        assert (partition_id, select_fields) == ("train", [SAMPLE_FIELD])
        return {SAMPLE_FIELD: [self.records[key] for key in keys]}


class BrokenQueue:
    def kv_batch_get(self, **_: Any) -> Any:
        raise ConnectionError("the storage unit is gone")


def output(tool: str | None, end: EndReason = EndReason.ANSWER) -> TrajectoryOutput:
    turn = TurnRecord(text="…", tokens=3, tool=tool, generate_seconds=0.5, tool_seconds=0.25)
    trajectory = Trajectory(task_id="1", data_source="perception", turns=[turn], end_reason=end)
    return TrajectoryOutput(
        trajectory,
        prompt_ids=[1, 2],
        response_ids=[3, 4, 5],
        response_mask=[1, 1, 1],
        num_turns=2,
        metrics={},
        extra_fields={"turn_scores": []},
    )


def record(tool: str | None) -> str:
    return str(output(tool).as_dict()[SAMPLE_FIELD])


def scored(reward: float, tool: str | None = None, end: EndReason = EndReason.ANSWER) -> str:
    played = output(tool, end)
    played.extra_fields["reward_extra_info"] = {"score": reward}
    return str(played.as_dict()[SAMPLE_FIELD])


def test_the_trajectory_is_there_for_the_reward_and_a_small_record_travels_on() -> None:
    scored = output("python")
    assert Trajectory.model_validate_json(scored.extra_fields[TRAJECTORY_FIELD]).turns

    scored.reward_score = 0.75
    scored.extra_fields["reward_extra_info"] = {"score": 0.75, "acc": 1.0, "turns": 1.0, "why": "…"}
    fields = scored.as_dict()
    assert TRAJECTORY_FIELD not in fields["extra_fields"]
    assert fields["extra_fields"]["turn_scores"] == []
    kept = SampleRecord.model_validate_json(fields[SAMPLE_FIELD])
    assert kept.rewards == {"score": 0.75, "acc": 1.0}
    assert kept.response_tokens == 3
    assert kept.tool_calls[0].tool == "python"


def test_padding_and_earlier_outputs_of_a_session_are_no_samples() -> None:
    keys = ["a_0_0", "a_0_1", "a_1_0", "a_1_10", "a_1_9", "pad_0_0"]
    tags: list[dict[str, Any]] = [{}, {}, {}, {}, {}, {"is_padding": True}]
    assert sample_keys(Batch(keys, tags)) == ["a_0_1", "a_1_10"]


def test_groups_from_which_nothing_is_learned_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt a has spread; b differs by rounding alone; c is one trajectory."""
    rewards = {"b_0_0": 0.8 + 0.2 + 0.2, "a_1_0": 1.2, "c_0_0": 1.0, "a_0_0": 0.2, "b_1_0": 1.2}
    queue = Queue({key: scored(reward) for key, reward in rewards.items()})
    monkeypatch.setattr(metrics, "tq", queue)
    watch = RunWatch(WatchSettings(), tmp_path, None)
    figures, _ = watch.trained(1, Batch(list(rewards)), 5)
    assert figures["deepeyes/groups_without_spread"] == pytest.approx(2 / 3)

    queue.records["a_0_0"] = record(None)  # of a reward function that gives no parts
    assert "deepeyes/groups_without_spread" not in watch.trained(2, Batch(list(rewards)), 5)[0]
    watch.close()


def test_the_logging_board_gets_whole_groups() -> None:
    keys = [f"{group}_{session}_0" for session in range(4) for group in "xyz"]
    assert whole_groups(keys, 5) == [
        f"{group}_{session}_0" for group in "xy" for session in range(4)
    ]
    assert sorted(whole_groups(keys, 100)) == sorted(keys)


def test_the_alarm_is_loud_each_step_and_asks_to_stop_where_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = WatchSettings.model_validate(
        {"metrics": False, "alarm": {"enabled": True, "stop": True, "window": 1}}
    )
    watch = RunWatch(settings, tmp_path, None)
    monkeypatch.setattr(metrics, "tq", Queue({"a_0_0": record("python"), "b_0_0": record(None)}))
    assert watch.trained(1, Batch(["a_0_0"]), 1) == ({}, None)
    assert watch.trained(2, Batch(["b_0_0"]), 1)[1] is not None
    watch.close()
    assert [one.levelname for one in caplog.records] == ["ERROR"]
    assert "tool_infrastructure_error" in caplog.text

    resumed = RunWatch(settings, tmp_path, None)
    assert "python fell to 0.00" in str(resumed.trained(3, Batch(["b_0_0"]), 1)[1])
    resumed.close()


def test_the_alarm_also_watches_calls_that_run_into_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"metrics": False, "alarm": {"enabled": True, "stop": True, "window": 1}}
    queue = Queue({"a_0_0": scored(1.0), "b_0_0": scored(0.0, "python", EndReason.TURNS)})
    monkeypatch.setattr(metrics, "tq", queue)
    for step, key in ((1, "a_0_0"), (2, "b_0_0")):  # resumed in between
        watch = RunWatch(WatchSettings.model_validate(settings), tmp_path, None)
        _, reason = watch.trained(step, Batch([key]), 1)
        watch.close()
    assert reason is not None and reason.startswith("runaway tool use at step 2: ")
    assert "end/turns" in caplog.text


def test_a_history_that_cannot_be_read_or_written_costs_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / HISTORY_FILE).write_text("[1, 2")
    (tmp_path / f".{HISTORY_FILE}.partial").mkdir()
    watch = RunWatch(WatchSettings.model_validate({"alarm": {"enabled": True}}), tmp_path, None)
    monkeypatch.setattr(metrics, "tq", Queue({"a_0_0": record("python")}))
    figures, reason = watch.trained(1, Batch(["a_0_0"]), 2)
    watch.close()
    assert reason is None
    assert figures["deepeyes/perception/tool_calls/python"] == 1
    assert figures["deepeyes/samples_left_out"] == 0.5
    assert {one.levelno for one in caplog.records} == {logging.WARNING}


def test_a_queue_that_fails_costs_figures_never_the_step(
    processor: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = WatchSettings.model_validate(
        {"logging_board": str(tmp_path), "alarm": {"enabled": True, "stop": True}}
    )
    watch = RunWatch(settings, tmp_path, processor.tokenizer)
    monkeypatch.setattr(metrics, "tq", BrokenQueue())
    figures, reason = watch.trained(1, Batch(["a_0_0"]), 1)
    watch.record_validation(Batch(["a_0_0"]))
    assert watch.validated() == {}
    watch.close()
    assert set(figures) == {"timing_s/deepeyes_figures"}
    assert reason is None
    assert [one.levelname for one in caplog.records] == ["WARNING"] * 3


def test_settings_come_from_the_recipes_section_which_may_have_other_keys() -> None:
    section = {"agent_config": "agent.yaml", "logging_board": "runs/board", "alarm": None}
    settings = watch_settings(section)
    assert settings.logging_board == Path("runs/board")
    assert settings.metrics
    assert not settings.alarm.enabled


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"alarm": {"share": 2}}, "deepeyes.alarm.share"),
        ({"alarm": {"windows": 3}}, "deepeyes.alarm.windows"),
        ({"logging_board_samples": 0}, "deepeyes.logging_board_samples"),
    ],
)
def test_a_wrong_setting_names_its_key(section: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError, match=key):
        watch_settings(section)
