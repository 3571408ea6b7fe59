"""The drawings of the README and the first page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage, Message
from deepeyes_plugins.protocol.observations import code_observation
from deepeyes_plugins.rollout import EndReason, Trajectory, TurnRecord
from deepeyes_plugins.rollout.log import TrajectoryLog
from deepeyes_plugins.rollout.trajectory import MessageRecord, PartRecord

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "docs" / "scripts"
IMAGES = ROOT / "docs" / "images"


def draw(*command: str | Path) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, timeout=60)


def test_the_picture_of_the_architecture_is_what_its_script_draws(tmp_path: Path) -> None:
    draw(SCRIPTS / "architecture.py", "--output", tmp_path)

    for theme in ("light", "dark"):
        name = f"architecture-{theme}.svg"
        assert (tmp_path / name).read_text() == (IMAGES / name).read_text()


def test_a_trajectory_of_a_log_is_drawn_with_its_texts_and_images(tmp_path: Path) -> None:
    picture, crop = (EncodedImage.from_pil(Image.new("RGB", (side, 8))) for side in (16, 4))
    observation = code_observation("a < b", "", [crop])
    turns = [
        TurnRecord(
            text="<think>Look.</think>\n<code>\n```python\nprint('a < b')\n```\n</code>",
            tool="python",
            observation=[PartRecord.of(part) for part in observation],
        ),
        TurnRecord(text="<think>Seen.</think>\n<answer>yes</answer>"),
    ]
    prompt = [MessageRecord.of(Message("user", (picture, "Is it?")))]
    trajectory = Trajectory(
        task_id="7", question="Is it?", prompt=prompt, turns=turns, answer="yes",
        end_reason=EndReason.ANSWER,
    )  # fmt: skip
    TrajectoryLog(tmp_path).append(trajectory, [picture, crop])

    draw(SCRIPTS / "trajectory.py", tmp_path, "--output", tmp_path / "drawn")

    for theme in ("light", "dark"):
        drawing = ElementTree.parse(tmp_path / "drawn" / f"trajectory-{theme}.svg")
        text = " ".join(element.text or "" for element in drawing.findall(".//{*}text"))
        assert "question Is it? model, turn 1" in text
        assert "a < b" in text
        assert text.endswith("<answer>yes</answer>")
        assert "stderr" not in text, "an empty stream takes no room"
        assert len(drawing.findall(".//{*}image")) == 2
