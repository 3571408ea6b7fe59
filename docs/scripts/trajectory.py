"""Draw a trajectory of a log: the question, each turn and what came back.

    python docs/scripts/trajectory.py runs/quickstart/evaluation/rl --task DeepEyesQuickstart/8

writes docs/images/trajectory-light.svg and trajectory-dark.svg. Without ``--task`` it takes the
first answer that followed an image.
"""

from __future__ import annotations

import argparse
import base64
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from svg import Drawing, Theme, write

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.rollout import Trajectory
from deepeyes_plugins.rollout.log import IMAGE_FOLDER, read_log
from deepeyes_plugins.rollout.trajectory import PartRecord

IMAGES = Path(__file__).parents[1] / "images"
CARD, GAP, PADDING, LINE = 225, 20, 12, 16
IN_A_ROW = 4
EMPTY_STREAM = re.compile(r"(?:stdout|stderr):\n```\n\n```\n*")
"""A stream of a code observation that holds nothing: it would only make the picture taller."""


@dataclass(frozen=True)
class Card:
    """One step: who speaks, what is said, which images are shown."""

    speaker: str
    text: str
    images: Sequence[EncodedImage] = ()
    by_model: bool = False

    @property
    def lines(self) -> list[str]:
        width = 30 if self.by_model else 33
        rows = [textwrap.wrap(line, width) or [""] for line in self.text.strip().splitlines()]
        return [line for row in rows for line in row]

    @property
    def height(self) -> int:
        return 2 * PADDING + 22 + LINE * len(self.lines) + len(self.images) * (CARD - 12)


def cards(trajectory: Trajectory, folder: Path) -> Iterator[Card]:
    """The steps of a trajectory."""

    def images(parts: Sequence[PartRecord]) -> list[EncodedImage]:
        hashes = [part.image for part in parts if part.image is not None]
        found = [next((folder / IMAGE_FOLDER).glob(f"{name}.*")) for name in hashes]
        return [EncodedImage(path.read_bytes()) for path in found]

    asked = [part for message in trajectory.prompt for part in message.parts]
    yield Card("question", trajectory.question, images(asked))
    for number, turn in enumerate(trajectory.turns, 1):
        yield Card(f"model, turn {number}", turn.text, by_model=True)
        if turn.observation is not None:
            said = "".join(part.text or "" for part in turn.observation)
            said = EMPTY_STREAM.sub("", said)
            yield Card(turn.tool or "observation", said, images(turn.observation))


def draw(steps: Sequence[Card], theme: Theme) -> Drawing:
    columns = min(IN_A_ROW, len(steps))
    drawing = Drawing(theme, columns * CARD + (columns - 1) * GAP + 2, "A trajectory, step by step")
    y = 1
    for start in range(0, len(steps), IN_A_ROW):
        row = steps[start : start + IN_A_ROW]
        height = max(card.height for card in row)
        for number, card in enumerate(row):
            x = 1 + number * (CARD + GAP)
            _draw_card(drawing, card, x, y, height)
            if number:
                drawing.arrow((x - GAP + 2, y + 26), (x - 2, y + 26))
        y += height + GAP
    drawing.height = y - GAP + 1
    return drawing


def _draw_card(drawing: Drawing, card: Card, x: int, y: int, height: int) -> None:
    theme = drawing.theme
    fill = theme.code if card.by_model else theme.card
    drawing.box(x, y, CARD, height, fill=fill, stroke=theme.accent if card.by_model else "")
    drawing.text(x + PADDING, y + 24, card.speaker, size=12, colour=theme.accent, bold=True)
    line_y = y + PADDING + 22
    for line in card.lines:
        line_y += LINE
        drawing.text(x + PADDING, line_y - 2, line, size=11, mono=card.by_model)
    side = CARD - 2 * PADDING
    for image in card.images:
        width, tall = image.size
        scale = side / max(width, tall)
        url = f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"
        drawing.image(x + PADDING, line_y + 8, width * scale, tall * scale, url, crisp=scale >= 2)
        line_y += side + PADDING


def chosen(log: Path, task: str | None) -> Trajectory:
    """The trajectory to draw."""
    for trajectory in read_log(log):
        shows = trajectory.question_images and trajectory.images_returned and trajectory.answer
        if trajectory.task_id == task or (task is None and shows):
            return trajectory
    raise SystemExit(f"{log}: no trajectory {task or 'that shows images and ends with an answer'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, help="folder of a trajectory log")
    parser.add_argument("--task", help="task id; by default the first that shows images")
    parser.add_argument("--output", type=Path, default=IMAGES)
    options = parser.parse_args()
    steps = list(cards(chosen(options.log, options.task), options.log))
    write(partial(draw, steps), options.output, "trajectory")


if __name__ == "__main__":
    main()
