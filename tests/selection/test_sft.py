"""SFT rows out of a log: which image, which question, and how much memory it takes."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.rewards.offline import ScoreRecord, lines_of
from deepeyes_plugins.rollout import EndReason, Task, Trajectory
from deepeyes_plugins.rollout.log import FILE_NAME, TrajectoryLog
from deepeyes_plugins.rollout.trajectory import MessageRecord, PartRecord, TurnRecord
from deepeyes_plugins.selection.questions import Question
from deepeyes_plugins.selection.sft import Choice, Made, write_rows

ANSWER = "<think>I see.</think>\n<answer>red</answer>"


def played(number: int, *prompt: PartRecord, thought: str = "", question: str = "") -> Trajectory:
    """A right trajectory; without ``prompt`` as a training logs it."""
    return Trajectory(
        task_id=str(number),
        data_source="perception",
        question=question,
        prompt=[MessageRecord(role="user", parts=list(prompt))] if prompt else [],
        turns=[TurnRecord(text=ANSWER.replace("I see.", thought or "I see."), action="answer")],
        answer="red",
        end_reason=EndReason.ANSWER,
    )


def make(folder: Path, *questions: Question) -> Made:
    """Rows of all trajectories in ``folder``, each of them right."""
    log = folder / FILE_NAME
    records = [
        ScoreRecord(
            trajectory=line.key,
            settings="",
            where=str(line.place),
            task_id=Trajectory.model_validate_json(line.text).task_id,
            data_source="perception",
            score=1.0,
            parts={"acc": 1.0, "format": 1.0},
        )
        for line in lines_of([log])
    ]
    return write_rows([log], records, questions, folder / "sft", "made", Choice())


def test_of_a_large_log_a_few_trajectories_are_in_memory(tmp_path: Path) -> None:
    log = TrajectoryLog(tmp_path)
    for number in range(100):
        log.write(played(number, PartRecord(text="What colour?"), thought="So. " * 25_000), [])
    assert log.path.stat().st_size > 10e6
    tracemalloc.start()
    try:
        made = make(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made.rows == 100
    assert peak < 3e6


def test_half_an_image_of_a_killed_process_is_none(tmp_path: Path) -> None:
    image = EncodedImage.from_pil(Image.new("RGB", (40, 40), "red"))
    log = TrajectoryLog(tmp_path)
    log.write(played(1, PartRecord.of(image), PartRecord(text="What colour?")), [])
    half = tmp_path / "images" / f"{image.sha256}.7-7.partial"
    half.write_bytes(image.data[:20])
    assert make(tmp_path).left == {"an image is missing in the folder of the log": 1}
    (tmp_path / "images" / f"{image.sha256}.bmp").write_bytes(image.data)
    assert make(tmp_path).rows == 1
    (row,) = json.loads((tmp_path / "sft" / "made.json").read_text())
    assert row["images"] == [f"images/{image.sha256}.bmp"]


@pytest.mark.parametrize(
    ("logged", "reasons"),
    [
        ("What  colour?", {}),
        ("", {}),
        ("What shape?", {"the data has another question under its data source and id": 1}),
    ],
)
def test_a_trajectory_is_joined_to_its_own_question_only(
    tmp_path: Path, logged: str, reasons: dict[str, int]
) -> None:
    """Rows for training and for validation may be numbered alike."""
    TrajectoryLog(tmp_path).write(played(1, question=logged), [])
    task = Task("1", (Message("user", ("What colour?",)),), data_source="perception")
    made = make(tmp_path, Question("key", task, "deepeyes_v2"))
    assert (made.rows, made.left) == (0 if reasons else 1, reasons)
