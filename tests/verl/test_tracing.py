"""Trajectories in verl's trace backends, by a real mlflow with a store in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Span, Trace
from verl.utils.rollout_trace import RolloutTraceConfig, rollout_trace_attr

from deepeyes_plugins.hosts.verl.tracing import THUMBNAIL_SIDE
from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.rollout import Observation, Step
from tests.verl.conftest import picture
from tests.verl.test_agent_loop import ANSWER, CODE, Play, Sandbox, engine, play, row

__all__ = ["engine", "play"]  # fixtures

CROP = picture(640, 480, "green")


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What verl's worker does with ``rollout.trace.backend: mlflow``."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    RolloutTraceConfig.reset()
    RolloutTraceConfig.init("deepeyes", "tiny", "mlflow", max_samples_per_step_per_worker=1)
    yield
    RolloutTraceConfig.reset()


async def worker(play: Play, *rows: dict[str, Any], trace: bool = False, **settings: Any) -> None:
    """Play sessions as verl's worker does; that of its default trainer never asks for traces."""
    for one in rows:
        with rollout_trace_attr(sample_index=0, step=3, rollout_n=0, trace=trace):
            await play(one, **settings)
    mlflow.flush_trace_async_logging()


def traces() -> list[Trace]:
    found: list[Trace] = mlflow.search_traces(return_type="list", order_by=["timestamp_ms ASC"])
    return found


def spans(trace: Trace) -> list[tuple[str, str | None]]:
    """The spans of a trace in order, each with its parent."""
    names = {span.span_id: span.name for span in trace.data.spans}
    return [(span.name, names.get(span.parent_id)) for span in trace.data.spans]


def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def step(self: Sandbox, action: Any) -> Step:
        return Step(Observation(("Images:\n", CROP)), tool="python")

    monkeypatch.setattr(Sandbox, "step", step)


@pytest.mark.usefixtures("traced")
async def test_a_trace_has_a_span_for_each_turn_and_tool_call(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    Sandbox.works = iter([True])
    looks(monkeypatch)
    await worker(play, row(session=2))
    (trace,) = traces()
    assert spans(trace) == [
        ("agent_loop", None),
        ("AgentTrace.trajectory", "agent_loop"),
        ("AgentTrace.turn", "AgentTrace.trajectory"),
        ("AgentTrace.tool_call", "AgentTrace.trajectory"),
        ("AgentTrace.turn", "AgentTrace.trajectory"),
    ]
    _, trajectory, first, call, last = trace.data.spans
    assert trajectory.inputs["messages"][-1] == {
        "role": "user",
        "content": [{"type": "text", "text": "Which colour?"}],
    }
    assert trajectory.outputs["answer"] == "red"
    assert trajectory.outputs["end_reason"] == "answer"
    assert trajectory.outputs["tool_calls"] == 1
    assert first.outputs["response_text"] == f"<think>{CODE}"
    assert last.outputs["response_text"] == "<think>" + ANSWER.removesuffix("<|im_end|>")
    assert call.inputs == {"action": "CodeAction", "arguments": {"code": "1"}}
    assert call.outputs["tool"] == "python"
    text, image = call.outputs["content"]
    assert text == {"type": "text", "text": "Images:\n"}
    assert image["sha256"] == CROP.sha256
    assert thumbnail(trace, call).size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE * 480 // 640)
    tags = {name: trace.info.tags[name] for name in ("sample_index", "step", "rollout_n")}
    assert tags == {"sample_index": "question-7", "step": "3", "rollout_n": "2"}
    assert trace.info.tags["validate"] == "False"


def thumbnail(trace: Trace, call: Span) -> EncodedImage:
    """The attachment that mlflow has made of the image in a tool call's outputs."""
    (uri,) = (part["image_url"]["url"] for part in call.outputs["content"] if "image_url" in part)
    assert len(json.dumps(call.outputs)) < 1000
    name = uri.removeprefix("mlflow-attachment://").partition("?")[0]
    folder = Path(trace.info.tags["mlflow.artifactLocation"].removeprefix("file://"))
    return EncodedImage(next(folder.rglob(f"*{name}*")).read_bytes())


@pytest.mark.usefixtures("traced")
async def test_so_many_prompts_are_traced_as_verls_setting_allows(play: Play) -> None:
    Sandbox.works = iter([True] * 5)
    step = {"global_steps": 4}
    rows = [row(session) | step | {"uid": uid} for uid in ("a", "b") for session in (0, 1)]
    held_out = {"uid": "c", "extra_info": {"index": "held out", "split": "test"}}
    await worker(play, *rows, row() | step | held_out)
    found = [(trace.info.tags["sample_index"], trace.info.tags["validate"]) for trace in traces()]
    assert found == [("question-7", "False")] * 2 + [("held out", "True")]


@pytest.mark.usefixtures("traced")
async def test_the_legacy_trainer_chooses_for_itself(play: Play) -> None:
    Sandbox.works = iter([True] * 2)
    alone = row()
    del alone["uid"]
    await worker(play, alone)
    assert traces() == []
    await worker(play, alone, trace=True)
    (trace,) = traces()
    assert spans(trace)[:2] == [
        ("rollout_trace", None),
        ("AgentTrace.trajectory", "rollout_trace"),
    ]


@pytest.mark.usefixtures("traced")
async def test_a_failed_trajectory_is_a_trace_with_its_error(play: Play) -> None:
    Sandbox.works = iter([False, True])
    await worker(play, row(), retries=1)
    failed, repeated = traces()
    assert failed.data.spans[1].outputs["end_reason"] == "infrastructure"
    assert "no sandbox" in failed.data.spans[1].outputs["error"]
    assert repeated.data.spans[1].outputs["end_reason"] == "answer"
