"""The framed-dot task: a question that can only be answered by cropping the picture.

A picture of `PICTURE_SIDE` x `PICTURE_SIDE` pixels is noisy ground with a cell in each corner.
Near the centre of each cell sits a dot a few pixels wide in one of four colours, and a white
frame marks the cell that the question is about. The tiny model sees every image at 56 x 56
pixels: in that view the frame is plain and the dots are gone, because a ring in the complementary
colour cancels each of them when the picture is scaled down. A crop of the framed cell, made in
the sandbox, shows the dot.

The demonstrations are imperfect on purpose, so that reinforcement learning has something to
learn: they follow the frame with probability `FOLLOW_PROBABILITY` and look at `HABIT_CELL`
otherwise. They always answer with the colour that their crop shows. In a few of them nothing comes
back from the tool and they guess: so that the model still answers when its sandbox is switched
off, and can be seen to be right by chance only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

CELL_SIDE = 160
"""Side of a cell in pixels."""
PICTURE_SIDE = 448
"""Side of the picture in pixels. The cells sit in its corners with a gap between them, so that
each lies differently on the grid of the model's image patches and can be told from the others."""
CROP_SIDE = 32
"""Side of a demonstrated crop in pixels: the smallest image that is shown without enlarging it."""

CELL_NAMES = ("top left", "top right", "bottom left", "bottom right")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (1, -1, -1),
    "green": (-1, 1, -1),
    "blue": (-1, -1, 1),
    "yellow": (1, 1, -1),
}
"""Each colour as its direction from grey, per RGB channel."""
HABIT_CELL = 0
"""Where a demonstration looks when it does not follow the frame."""
FOLLOW_PROBABILITY = 0.38
"""Share of demonstrations that follow the frame: below one half, so that greedy decoding of the
imitated policy prefers the habit."""
FAILURE_PROBABILITY = 0.06
"""Share of demonstrations in which nothing comes back from the tool."""

SYSTEM_PROMPT = "Use code to zoom in, then answer."
QUESTIONS = (
    "What colour is the dot in the frame?",
    "Which colour has the framed dot?",
    "Name the colour of the dot in the frame.",
    "Tell me the colour of the framed dot.",
    "The dot in the frame: what colour?",
)
IMAGE_PLACEHOLDER = "<image>"

_NO_IMAGE = "Code execution result:\nstdout:\n```\n\n```\n\nstderr:\n```\n\n```"
FAILED_OBSERVATIONS = (
    _NO_IMAGE,
    "<tool_response>\nError: There is no tool 'python'. Tools: none.\n</tool_response>",
)
"""What comes back when a cell showed nothing, and when there is no sandbox at all."""

Split = Literal["sft", "train", "heldout"]
SEEDS_PER_SPLIT = 1_000_000
_SPLIT_OFFSETS: dict[Split, int] = {
    "sft": 0,
    "train": SEEDS_PER_SPLIT,
    "heldout": 2 * SEEDS_PER_SPLIT,
}

# The ground is noise in blocks of eight pixels, the factor between picture and model view: all of
# it survives the scaling and drowns what little of a dot does.
_BLOCK_SIDE = 8
_BLOCK_NOISE = 32.0
_GREY = 128
_FRAME_WIDTH = 14
_JITTER = 1
_DOT_SQUARED_RADIUS = 4
_RING_SQUARED_RADIUS = 8
# With 13 pixels in the dot and 12 in the ring, the contrast of the ring is a whole number, too.
_DOT_CONTRAST = 108


Box = tuple[int, int, int, int]
"""Left, upper, right and lower pixel of a region, as `PIL.Image.Image.crop` takes them."""


@dataclass(frozen=True)
class Example:
    """One picture with its question.

    Attributes:
        seed: The number that the example was drawn from.
        picture: RGB image of `PICTURE_SIDE` x `PICTURE_SIDE` pixels.
        question: The question in one of several wordings; it names neither cell nor colour.
        framed_cell: Index of the framed cell, 0 to 3, row by row.
        colours: The colour name of the dot in each of the four cells.
        dot_centres: Pixel (x, y) of the dot in each of the four cells.
        demonstrated_cell: Index of the cell that the demonstration crops.
        failed_observation: What the demonstration gets instead of its crop, if anything.
        demonstrated_answer: The colour name that the demonstration answers with: what its crop
            shows, or a guess.
    """

    seed: int
    picture: Image.Image
    question: str
    framed_cell: int
    colours: tuple[str, ...]
    dot_centres: tuple[tuple[int, int], ...]
    demonstrated_cell: int
    failed_observation: str | None
    demonstrated_answer: str

    @property
    def answer(self) -> str:
        """The colour name of the framed dot."""
        return self.colours[self.framed_cell]


@dataclass(frozen=True)
class Turn:
    """One message of a demonstration.

    Attributes:
        role: "system", "user" or "assistant".
        text: The message; each `<image>` in it stands for one of `images`.
        images: The images of this message, in order.
    """

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[Image.Image, ...] = ()


def split_examples(split: Split, count: int) -> Iterator[Example]:
    """Yields the first `count` examples of a split; no two splits share a seed.

    Raises:
        ValueError: If `count` is negative or exceeds `SEEDS_PER_SPLIT`.
    """
    if not 0 <= count <= SEEDS_PER_SPLIT:
        raise ValueError(
            f"cannot draw {count} examples of split {split!r}: "
            f"ask for a number from 0 to {SEEDS_PER_SPLIT}"
        )
    offset = _SPLIT_OFFSETS[split]
    return (make_example(seed) for seed in range(offset, offset + count))


def make_example(seed: int) -> Example:
    """Draws an example; the same non-negative seed always gives the same one.

    Frame, colours, wording and dot positions are drawn independently of each other, so that
    nothing but the dot itself tells the answer.
    """
    generator = np.random.default_rng(seed)
    names = tuple(COLOURS)
    framed_cell = int(generator.integers(len(CELL_NAMES)))
    colours = tuple(names[i] for i in generator.integers(len(names), size=len(CELL_NAMES)))
    question = QUESTIONS[int(generator.integers(len(QUESTIONS)))]
    follows = generator.random() < FOLLOW_PROBABILITY
    demonstrated_cell = framed_cell if follows else HABIT_CELL
    fails = generator.random() < FAILURE_PROBABILITY
    failure = FAILED_OBSERVATIONS[int(generator.integers(len(FAILED_OBSERVATIONS)))]
    guess = names[int(generator.integers(len(names)))]
    dot_centres = tuple(
        (left + CELL_SIDE // 2 + int(dx), upper + CELL_SIDE // 2 + int(dy))
        for (left, upper, _, _), (dx, dy) in zip(
            map(cell_box, range(len(CELL_NAMES))),
            generator.integers(-_JITTER, _JITTER + 1, size=(len(CELL_NAMES), 2)),
            strict=True,
        )
    )
    return Example(
        seed=seed,
        picture=_draw_picture(generator, framed_cell, colours, dot_centres),
        question=question,
        framed_cell=framed_cell,
        colours=colours,
        dot_centres=dot_centres,
        demonstrated_cell=demonstrated_cell,
        failed_observation=failure if fails else None,
        demonstrated_answer=guess if fails else colours[demonstrated_cell],
    )


def cell_box(cell: int) -> Box:
    """Returns the region of a whole cell."""
    step = PICTURE_SIDE - CELL_SIDE
    left, upper = cell % 2 * step, cell // 2 * step
    return left, upper, left + CELL_SIDE, upper + CELL_SIDE


def crop_box(cell: int) -> Box:
    """Returns the region of `CROP_SIDE` pixels around the centre of a cell."""
    left, upper, _, _ = cell_box(cell)
    margin = (CELL_SIDE - CROP_SIDE) // 2
    return left + margin, upper + margin, left + margin + CROP_SIDE, upper + margin + CROP_SIDE


def demonstration(example: Example) -> list[Turn]:
    """Returns the demonstrated trajectory: prompt, crop, what comes back, answer."""
    cell = example.demonstrated_cell
    colour = example.demonstrated_answer
    if example.failed_observation is None:
        crop = example.picture.crop(crop_box(cell))
        outcome = [
            Turn("user", observation_turn(), (crop,)),
            Turn("assistant", answer_turn(colour)),
        ]
    else:
        outcome = [
            Turn("user", example.failed_observation),
            Turn("assistant", guess_turn(colour)),
        ]
    return [*prompt(example), Turn("assistant", crop_turn(cell)), *outcome]


def prompt(example: Example) -> list[Turn]:
    """Returns the system and user messages that open a trajectory."""
    question = Turn("user", IMAGE_PLACEHOLDER + example.question, (example.picture,))
    return [Turn("system", SYSTEM_PROMPT), question]


def crop_turn(cell: int) -> str:
    """Returns the assistant turn that crops the centre of a cell."""
    return (
        f"<think>Look at the {CELL_NAMES[cell]}.</think>\n"
        f"<code>\n```python\nimage_1.crop({crop_box(cell)})\n```\n</code>"
    )


def observation_turn() -> str:
    """Returns what the sandbox reports after a cell that showed one image and printed nothing."""
    return f"{_NO_IMAGE}\n\nImages:\n{IMAGE_PLACEHOLDER}"


def answer_turn(colour: str) -> str:
    """Returns the assistant turn that answers with a colour."""
    return f"<think>It is {colour}.</think>\n<answer>{colour}</answer>"


def guess_turn(colour: str) -> str:
    """Returns the assistant turn that guesses a colour, having seen none."""
    return f"<think>I have to guess.</think>\n<answer>{colour}</answer>"


def task_texts() -> list[str]:
    """Returns every text that the task's prompts, demonstrations and observations are made of."""
    return [
        SYSTEM_PROMPT,
        *QUESTIONS,
        *map(crop_turn, range(len(CELL_NAMES))),
        observation_turn().replace(IMAGE_PLACEHOLDER, ""),
        *FAILED_OBSERVATIONS,
        *map(answer_turn, COLOURS),
        *map(guess_turn, COLOURS),
    ]


def _draw_picture(
    generator: np.random.Generator,
    framed_cell: int,
    colours: tuple[str, ...],
    dot_centres: tuple[tuple[int, int], ...],
) -> Image.Image:
    blocks = PICTURE_SIDE // _BLOCK_SIDE
    noise = generator.normal(_GREY, _BLOCK_NOISE, (blocks, blocks, 3)).clip(0, 255)
    pixels = noise.astype(np.uint8).repeat(_BLOCK_SIDE, axis=0).repeat(_BLOCK_SIDE, axis=1)
    left, upper, right, lower = cell_box(framed_cell)
    cell = pixels[upper:lower, left:right]
    cell[:_FRAME_WIDTH] = cell[-_FRAME_WIDTH:] = 255
    cell[:, :_FRAME_WIDTH] = cell[:, -_FRAME_WIDTH:] = 255
    for colour, (x, y) in zip(colours, dot_centres, strict=True):
        _draw_dot(pixels, x, y, np.array(COLOURS[colour]))
    return Image.fromarray(pixels)


def _draw_dot(pixels: np.ndarray, x: int, y: int, direction: np.ndarray) -> None:
    """Draws a dot and a ring of the opposite colour whose sum over all pixels is grey."""
    reach = int(_RING_SQUARED_RADIUS**0.5)
    window = pixels[y - reach : y + reach + 1, x - reach : x + reach + 1]
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    squared_distance = rows**2 + columns**2
    dot = squared_distance <= _DOT_SQUARED_RADIUS
    ring = (squared_distance <= _RING_SQUARED_RADIUS) & ~dot
    ring_contrast = _DOT_CONTRAST * dot.sum() / ring.sum()
    window[dot] = _GREY + _DOT_CONTRAST * direction
    window[ring] = np.rint(_GREY - ring_contrast * direction)
