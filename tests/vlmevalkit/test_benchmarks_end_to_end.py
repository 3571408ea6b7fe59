"""``python -m vlmeval``, unmodified, on a search benchmark and on a shuffled pass, with a judge."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from deepeyes_plugins.rollout.log import read_log
from eval_plugins.vlmevalkit.benchmarks import Question, write_table
from eval_plugins.vlmevalkit.shuffling import shuffle_table
from tests.judge.scripts import YES
from tests.openai.server import Body, ChatServer, Reply, question, text_of
from tests.vlmevalkit.conftest import Vlmeval, png
from tests.vlmevalkit.test_shuffling import write_choices

SEARCH = (
    Question("q-7", "Who won?", "Lando Norris", ("Norris",), (png("red"),)),
    Question("q-8", "And without an image?", "nobody"),
    Question("q-9", "Which year?", "1998"),
)
ANSWERS = {"Who won?": "norris", "And without an image?": "No one.", "Which year?": "1999"}


def agent(body: Body) -> Reply:
    asked = question(body)
    if asked in ANSWERS:
        return Reply(f"<answer>{ANSWERS[asked]}</answer>")
    (letter,) = (line[0] for line in asked.splitlines() if line.endswith(". red"))
    return Reply(f"<answer>{letter}</answer>")


def judge(body: Body) -> Reply:
    """Says yes to every comparison, and hello to VLMEvalKit's own judge."""
    return Reply(YES if "<reference" in text_of(body["messages"][-1]["content"]) else "hello")


def test_both_are_found_by_name_and_scored(tmp_path: Path, vlmeval: Vlmeval) -> None:
    data = tmp_path / "data"
    write_table("MMSearch", SEARCH, data)
    write_choices(data, rows=6)
    shuffle_table("VStarBench", 0, data)
    (tmp_path / "agent.yaml").write_text("environment: none\n", encoding="utf-8")

    with ChatServer(agent) as model, ChatServer(judge) as referee:
        vlmeval(
            *["--model", "DeepEyesV2", "--data", "MMSearch", "VStarBench_shuffled_0"],
            *["--judge-base-url", referee.url, "--judge", "tiny", "--judge-key", "secret"],
            DEEPEYES_AGENT_CONFIG=str(tmp_path / "agent.yaml"),
            DEEPEYES_OPENAI_URL=model.url,
        )
        asked = [body for body in referee.requests if judge(body).text == YES]

    folder = tmp_path / "out" / "DeepEyesV2"
    scores = pd.read_csv(folder / "DeepEyesV2_MMSearch_acc.csv").iloc[0].to_dict()
    assert scores == pytest.approx(
        {"Overall": 200 / 3, "answered": 3, "failed": 0, "not_scored": 0}
    )
    how = json.loads((folder / "DeepEyesV2_MMSearch_scoring.json").read_text())
    assert (how["judge"], how["judge_calls"], len(asked)) == ("tiny", 1, 1)
    pass_scores = pd.read_csv(folder / "DeepEyesV2_VStarBench_shuffled_0_acc.csv")
    assert pass_scores["Overall"][0] == 1.0

    # The image reached the model as it was, under the sample's name; the others had none.
    names = [entry.task_id for entry in read_log(tmp_path / "log")]
    assert sum(name.startswith("MMSearch/q-7") for name in names) == 1
    images = [
        len([part for part in message["content"] if part["type"] == "image_url"])
        for message in (body["messages"][-1] for body in model.requests)
        if isinstance(message["content"], list) and text_of(message["content"]) in ANSWERS
    ]
    assert sum(images) == 1
