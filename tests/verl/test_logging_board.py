"""What RL Logging Board reads, and what a disk that fails costs."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from deepeyes_plugins.hosts.verl.logging_board import FILE_NAME, BoardSample, LoggingBoard
from tests.rollout.test_log import files_end_at

PROMPT = "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>What colour?"


def sample(tokenizer: Any, text: str = "red<|im_end|>", **changed: Any) -> BoardSample:
    ids = tokenizer.encode(text)
    return BoardSample(
        **{
            "prompt": tokenizer.encode(PROMPT),
            "response": ids,
            "mask": [1] * len(ids),
            "log_probs": [-0.5] * len(ids),
            "token_rewards": [0.0] * (len(ids) - 1) + [1.0],
            "reward": 1.0,
            "ground_truth": "red",
            "data_source": "perception",
        }
        | changed
    )


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE_NAME).read_text("utf-8").splitlines()]


def test_steps_are_in_one_file_in_order_whole_and_readable(processor: Any, tmp_path: Path) -> None:
    tokenizer = processor.tokenizer
    board = LoggingBoard(tmp_path / "board", tokenizer)
    board.log(1, [sample(tokenizer), sample(tokenizer, "blue\nor so<|im_end|>", reward=0.0)])
    board.log(2, [sample(tokenizer)])
    assert board.writer.flush(10)

    lines = read(tmp_path / "board")
    assert [line["step"] for line in lines] == [1, 1, 2]
    assert lines[1]["response"] == "blue\nor so<|im_end|>"
    assert "".join(lines[1]["response_tokens"]) == lines[1]["response"]
    assert lines[1]["reward"] == 0
    assert lines[0]["prompt"].count("<|image_pad|>") == 1
    assert lines[0]["prompt"].endswith("What colour?")
    assert "ref_logprobs" not in lines[0]
    assert "values" not in lines[0]


def test_a_reference_policy_and_a_critic_are_shown_where_there_are_any(
    processor: Any, tmp_path: Path
) -> None:
    tokenizer = processor.tokenizer
    length = len(sample(tokenizer).response)
    board = LoggingBoard(tmp_path, tokenizer)
    board.log(1, [sample(tokenizer, reference_log_probs=[-0.25] * length, values=[0.125] * length)])
    assert board.writer.flush(10)
    (line,) = read(tmp_path)
    assert line["ref_logprobs"] == [-0.25] * length
    assert line["values"] == [0.125] * length


def test_odd_text_and_odd_numbers_are_written_as_json_can_hold_them(
    processor: Any, tmp_path: Path
) -> None:
    tokenizer = processor.tokenizer
    half_a_character = tokenizer.encode("é")[:1]
    board = LoggingBoard(tmp_path, tokenizer)
    board.log(
        1,
        [
            sample(
                tokenizer,
                prompt=half_a_character,
                response=half_a_character * 3,
                mask=[1, 1, 1],
                log_probs=[math.nan, -math.inf, -0.1234567],
                token_rewards=[0.0, 0.0, math.inf],
                ground_truth="\ud800 half a pair",
            )
        ],
    )
    assert board.writer.flush(10)
    (line,) = read(tmp_path)
    assert line["logprobs"] == [0.0, -1e9, -0.123457]
    assert line["token_rewards"] == [0.0, 0.0, 1e9]
    assert line["ground_truth"] == "\ufffd half a pair"
    assert len(line["response_tokens"]) == 3


def test_a_folder_that_cannot_be_written_costs_a_warning(
    processor: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    board = LoggingBoard(tmp_path / "file" / "board", processor.tokenizer)
    for step in (1, 2, 3):
        board.log(step, [sample(processor.tokenizer)])
    assert board.writer.flush(10)
    assert board.writer.failed == 3
    warnings = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "samples for the logging board cannot be written" in warnings[0].getMessage()


def test_a_full_disk_leaves_whole_steps_only(processor: Any, tmp_path: Path) -> None:
    tokenizer = processor.tokenizer
    board = LoggingBoard(tmp_path, tokenizer)
    board.log(1, [sample(tokenizer)] * 2)
    assert board.writer.flush(10)
    size = (tmp_path / FILE_NAME).stat().st_size
    with files_end_at(size + size // 2):
        board.log(2, [sample(tokenizer)] * 2)
        assert board.writer.flush(10)
    board.log(3, [sample(tokenizer)] * 2)
    assert board.writer.flush(10)
    assert [line["step"] for line in read(tmp_path)] == [1, 1, 3, 3]
