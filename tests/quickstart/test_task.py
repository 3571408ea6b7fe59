"""The framed-dot task and the files that are made of it."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deepeyes_plugins.protocol.content import EncodedImage
from deepeyes_plugins.protocol.observations import code_observation
from deepeyes_plugins.quickstart import task
from deepeyes_plugins.quickstart.datasets import write_rl, write_sft, write_vlmevalkit
from deepeyes_plugins.quickstart.task import (
    CELL_NAMES,
    COLOURS,
    CROP_SIDE,
    FAILED_OBSERVATIONS,
    FAILURE_PROBABILITY,
    FOLLOW_PROBABILITY,
    HABIT_CELL,
    SEEDS_PER_SPLIT,
    Example,
    crop_box,
    demonstration,
    make_example,
    observation_turn,
    split_examples,
)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return list(split_examples("sft", 2000))


def image_of(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


class TestPictures:
    def test_a_seed_always_gives_the_same_example(self) -> None:
        first, second = make_example(7), make_example(7)
        assert first.picture == second.picture
        assert (first.question, first.answer) == (second.question, second.answer)
        assert first.picture != make_example(8).picture

    def test_the_crop_shows_the_dot_in_its_colour(self, examples: list[Example]) -> None:
        for example in examples[:100]:
            left, upper, _, _ = crop_box(example.framed_cell)
            crop = example.picture.crop(crop_box(example.framed_cell))
            assert crop.size == (CROP_SIDE, CROP_SIDE)
            x, y = example.dot_centres[example.framed_cell]
            shown = np.sign(np.array(crop.getpixel((x - left, y - upper))) - 128)
            assert tuple(shown) == COLOURS[example.answer]

    def test_a_dot_with_its_ring_averages_to_grey(self) -> None:
        for direction in COLOURS.values():
            pixels = np.full((9, 9, 3), 128, dtype=np.uint8)
            task._draw_dot(pixels, 4, 4, np.array(direction))
            assert np.ptp(pixels) > 200
            assert pixels.sum(axis=(0, 1)).tolist() == [81 * 128] * 3

    def test_frame_wording_and_place_say_nothing_about_the_colour(
        self, examples: list[Example]
    ) -> None:
        def place(example: Example) -> tuple[int, int]:
            left, upper, _, _ = crop_box(example.framed_cell)
            x, y = example.dot_centres[example.framed_cell]
            return x - left, y - upper

        for trait in (
            lambda example: example.framed_cell,
            lambda example: example.question,
            lambda example: example.demonstrated_cell == HABIT_CELL,
            place,
        ):
            pairs = Counter((trait(example), example.answer) for example in examples)
            traits = Counter(trait(example) for example in examples)
            for value, total in traits.items():
                for colour in COLOURS:
                    # Five standard errors around one in four.
                    spread = 5 * (0.25 * 0.75 / total) ** 0.5
                    assert pairs[value, colour] / total == pytest.approx(0.25, abs=spread)

    def test_the_question_names_neither_cell_nor_colour(self, examples: list[Example]) -> None:
        words = set(COLOURS) | {word for name in CELL_NAMES for word in name.split()}
        for example in examples:
            assert not words & set(example.question.lower().replace("?", "").split())


class TestSplits:
    def test_splits_share_no_seed(self) -> None:
        seeds = [
            {example.seed for example in split_examples(split, 50)}
            for split in ("sft", "train", "heldout")
        ]
        assert len(set.union(*seeds)) == 150

    @pytest.mark.parametrize("count", [-1, SEEDS_PER_SPLIT + 1])
    def test_a_split_has_an_end(self, count: int) -> None:
        with pytest.raises(ValueError, match="ask for a number from 0 to"):
            split_examples("sft", count)


class TestDemonstrations:
    def test_the_exact_text(self) -> None:
        example = next(
            e
            for e in split_examples("sft", 100)
            if e.demonstrated_cell == 0 and e.failed_observation is None
        )
        colour = example.colours[0]
        assert [(turn.role, turn.text, len(turn.images)) for turn in demonstration(example)] == [
            ("system", "Use code to zoom in, then answer.", 0),
            ("user", f"<image>{example.question}", 1),
            (
                "assistant",
                "<think>Look at the top left.</think>\n<code>\n```python\n"
                "image_1.crop((64, 64, 96, 96))\n```\n</code>",
                0,
            ),
            (
                "user",
                "Code execution result:\nstdout:\n```\n\n```\n\nstderr:\n```\n\n```\n\n"
                "Images:\n<image>",
                1,
            ),
            ("assistant", f"<think>It is {colour}.</think>\n<answer>{colour}</answer>", 0),
        ]

    def test_they_follow_the_frame_less_than_half_the_time(self, examples: list[Example]) -> None:
        elsewhere = [example for example in examples if example.framed_cell != HABIT_CELL]
        followed = [example.demonstrated_cell == example.framed_cell for example in elsewhere]
        assert np.mean(followed) == pytest.approx(FOLLOW_PROBABILITY, abs=0.06)
        assert {
            example.demonstrated_cell
            for example, follows in zip(elsewhere, followed, strict=True)
            if not follows
        } == {HABIT_CELL}

    def test_the_answer_is_what_the_crop_shows(self, examples: list[Example]) -> None:
        for example in [e for e in examples if e.failed_observation is None][:100]:
            *_, observation, answer = demonstration(example)
            expected = example.picture.crop(crop_box(example.demonstrated_cell))
            assert observation.images[0] == expected
            assert f"<answer>{example.colours[example.demonstrated_cell]}</answer>" in answer.text

    def test_a_few_get_nothing_back_and_guess(self, examples: list[Example]) -> None:
        failures = [example for example in examples if example.failed_observation is not None]
        assert len(failures) / len(examples) == pytest.approx(FAILURE_PROBABILITY, abs=0.02)
        right = [example.demonstrated_answer == example.answer for example in failures]
        assert np.mean(right) == pytest.approx(0.25, abs=0.15)
        *_, observation, answer = demonstration(failures[0])
        assert (observation.text, observation.images) == (failures[0].failed_observation, ())
        assert answer.text == (
            f"<think>I have to guess.</think>\n<answer>{failures[0].demonstrated_answer}</answer>"
        )

    def test_what_comes_back_is_worded_as_the_agent_words_it(self) -> None:
        picture = make_example(0).picture
        *text, _ = code_observation("", "", [EncodedImage.from_pil(picture)])
        assert "".join(map(str, text)) + "<image>" == observation_turn()
        assert code_observation("", "") == (FAILED_OBSERVATIONS[0],)


class TestFiles:
    def test_sft(self, tmp_path: Path) -> None:
        examples = list(split_examples("sft", 5))
        write_sft(examples, tmp_path)
        entry = json.loads((tmp_path / "dataset_info.json").read_text())["framed_dots"]
        assert entry["formatting"] == "deepeyes"
        rows = json.loads((tmp_path / entry["file_name"]).read_text())
        assert len(rows) == 5
        for row, example in zip(rows, examples, strict=True):
            text = "".join(message["content"] for message in row["messages"])
            assert text.count("<image>") == len(row["images"])
            picture = (tmp_path / row["images"][0]).read_bytes()
            assert np.array_equal(image_of(picture), np.array(example.picture))

    def test_image_files_are_named_by_content_and_carry_no_metadata(self, tmp_path: Path) -> None:
        examples = list(split_examples("sft", 5))
        write_sft(examples, tmp_path, formatting="sharegpt")
        files = sorted((tmp_path / "images").iterdir())
        assert len(files) == sum(1 + (e.failed_observation is None) for e in examples)
        for file in files:
            assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(file.stem)
            assert Image.open(file).info == {}

    def test_rl(self, tmp_path: Path) -> None:
        examples = list(split_examples("train", 5))
        write_rl(examples, tmp_path / "new/train.parquet", "train")
        rows = pq.read_table(tmp_path / "new/train.parquet").to_pylist()
        for row, example in zip(rows, examples, strict=True):
            picture = row.pop("images")[0]
            assert picture["path"] is None
            assert np.array_equal(image_of(picture["bytes"]), np.array(example.picture))
            assert row == {
                "data_source": "perception",
                "agent_name": "deepeyes",
                "env_name": "deepeyes_v2",
                "ability": "perception",
                "prompt": [
                    {"role": "system", "content": "Use code to zoom in, then answer."},
                    {"role": "user", "content": f"<image>{example.question}"},
                ],
                "reward_model": {"ground_truth": example.answer, "style": "rule"},
                "extra_info": {
                    "index": str(example.seed),
                    "split": "train",
                    "question": example.question,
                    "answer": example.answer,
                },
            }

    def test_vlmevalkit(self, tmp_path: Path) -> None:
        examples = list(split_examples("heldout", 5))
        write_vlmevalkit(examples, tmp_path / "dots.tsv")
        csv.field_size_limit(10_000_000)
        with (tmp_path / "dots.tsv").open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert [row["index"] for row in rows] == ["0", "1", "2", "3", "4"]
        for row, example in zip(rows, examples, strict=True):
            assert (row["question"], row["answer"]) == (example.question, example.answer)
            picture = image_of(base64.b64decode(row["image"]))
            assert np.array_equal(picture, np.array(example.picture))
