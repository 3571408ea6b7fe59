"""What VLMEvalKit's tables give back, and what upstream's own ``evaluate`` makes of it."""

from __future__ import annotations

import base64
import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vlmeval.dataset import build_dataset
from vlmeval.dataset.image_vqa import ImageVQADataset
from vlmeval.smp import dump, load

from deepeyes_plugins.rollout import EndReason, Trajectory
from eval_plugins.cells import LONGEST_TEXT, MARK, decoded, encoded, truncated_to_cell
from eval_plugins.report.results import find_results
from eval_plugins.report.tables import read_table
from eval_plugins.vlmevalkit.adapter import prediction
from eval_plugins.vlmevalkit.shuffling import shuffle_table
from tests.openai.server import Body, ChatServer, Reply, question
from tests.vlmevalkit.conftest import png

FORMATS = ("xlsx", "tsv", "json")
IMAGE = base64.b64encode(png("red")).decode()

KINDS: dict[str, list[str]] = {
    "words for nothing": [
        *("None", "NA", "N/A", "n/a", "nan", "NaN", "-nan", "null", "NULL", "<NA>", "#N/A", "#NA"),
        "red",
    ],
    "nothing but words for nothing": ["None", "nan"],
    "numbers": ["12", "7.0", "3.50", "1e5", "007", "+5", "-3", ".5", "1_000", "0x10"],
    "numbers beside none": ["None", "12", "7"],
    "infinite": ["inf", "-inf", "1e999", "Infinity"],
    "truth values": ["True", "False", "TRUE", "true"],
    "dates": ["2024-05-01", "1998", "12:30"],
    "formulas": ["=5", "=1+1", "{=5}", "{=A1", "+5", "-1 apple", "@SUM(1)", "'5"],
    "line ends": ["a\r\nb", "c\rd", "e\nf", "g\n\r\nh"],
    "control characters": ["a\0b", "\x1b[0mred", "a\x0bb\x0cc", "a\x7fb\x85c\u2028d", "a\ufffeb"],
    "texts like spreadsheets' own": [
        *("_x000D_", "_x005F_", "x005F_", "_x005F_x000D_", "a_x0041_", "<r>5</r>", "&amp; <b>"),
        *("\\u000d", "\\frac{1}{2}", f"a{MARK}b"),
    ],
    "links": [
        *("https://a.example/" + "x" * 3000, "ftp://a", "mailto:bob", "internal:Sheet!A1"),
        *("external: 5 km", "file:///a/b.txt", "http://"),
    ],
    "lists and quotes": ['["a", "b"]', '"quoted"', "a\tb", "a,b", '""'],
    "as long as a cell": ["x" * LONGEST_TEXT, "😀" * (LONGEST_TEXT // 2)],
}


def said(answer: str | None) -> str:
    """The prediction of an episode that ended with an answer."""
    return prediction(Trajectory(task_id="t", turns=[], answer=answer, end_reason=EndReason.ANSWER))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("answers", KINDS.values(), ids=KINDS.keys())
def test_a_table_gives_back_what_was_answered(
    tmp_path: Path, answers: Sequence[str], kind: str
) -> None:
    first, second = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    rows = {"index": range(len(answers)), "question": answers, "prediction": map(said, answers)}
    dump(pd.DataFrame(rows), str(first))
    dump(load(str(first)), str(second))  # As a repaired run and upstream's scoring do.
    for path in (first, second):
        assert list(load(str(path))["prediction"]) == answers
        assert list(read_table(path)["prediction"]) == answers
    assert list(load(str(first))["index"]) == [*range(len(answers))]


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("_x005FD\r\\u<r>=")))
        .map(str.strip)
        .filter(bool),
        min_size=1,
    )
)
def test_any_text_comes_back(
    tmp_path_factory: pytest.TempPathFactory, kind: str, answers: list[str]
) -> None:
    path = str(tmp_path_factory.mktemp("table") / f"a.{kind}")
    rows = {"index": range(len(answers)), "question": answers[::-1], "prediction": answers}
    dump(pd.DataFrame(rows), path)
    assert list(load(path)["prediction"]) == answers
    assert list(read_table(Path(path))["question"]) == answers[::-1]


@given(st.text())
def test_few_texts_are_encoded_and_all_are_decoded(text: str) -> None:
    assert decoded(encoded(text)) == text
    assert encoded(text) in (text, MARK + text) or "\\u" in encoded(text)


@pytest.mark.parametrize("answer", ["None", "12", "It is blue.\nB", "是", "a = 5", "\\frac12"])
def test_ordinary_answers_are_written_as_they_are(answer: str) -> None:
    assert encoded(answer) == answer


@pytest.mark.parametrize("character", ["x", "\r", "😀", "\ufffe"])
def test_the_end_of_a_long_answer_is_kept(character: str) -> None:
    text = character * 40_000 + "<answer>B"
    kept = truncated_to_cell(text)
    assert text.endswith(kept) and kept.endswith("<answer>B")
    units = len(encoded(kept).encode("utf-16-le")) // 2
    assert LONGEST_TEXT - 6 <= units <= LONGEST_TEXT


@pytest.mark.parametrize("kind", FORMATS)
def test_other_columns_and_empty_cells_are_upstreams(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / f"a.{kind}")
    table = {
        "question": ["a", "b"],
        "prediction": ["7", None],
        "answer": [1.5, None],
        "hit": [1, 0],
    }
    dump(pd.DataFrame({"index": [1, 2], **table}), path)
    back = load(path)
    assert back["prediction"].isna().tolist() == [False, True]
    assert back["answer"].isna().tolist() == [False, True] and back["answer"][0] == 1.5
    assert back["hit"].tolist() == [1, 0] and back["index"].tolist() == [1, 2]
    # What is no dataset's table is upstream's, whatever is in it.
    plain = str(tmp_path / "plain.json")
    dump([{"index": 1, "prediction": "=5"}], plain)
    assert load(plain) == [{"index": 1, "prediction": "=5"}]


# What a chart's question may be answered with; upstream compares texts and numbers.
CHARTS = {
    "a formula?": "=5",
    "a word for nothing?": "None",
    "another?": "N/A",
    "a link?": "https://a.example/" + "x" * 2100,
    "a text like an escape?": "_x000D_ed",
    "a number?": "12",
    "two lines?": "a\r\nb",
    "colour?": "red",
}
# Options by letter; the first is the right one, and all are to be shown as they stand.
OPTIONS = [
    *(("None", "red", "blue", "lime"), ("NA", "5", "6", "7"), ("007", "15", "90", "3")),
    *(("2024-05-01", "1998", "12:30", "May"), ("12", "7.0", "3.5", "1e5")),
    *(("True", "False", "nan", "null"), ("=5", "=6", "a\r\nb", "@x")),
]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["index", "image", *rows[0]], dialect="excel-tab")
        writer.writeheader()
        writer.writerows({"index": n, "image": IMAGE, **row} for n, row in enumerate(rows))


def write_charts(folder: Path) -> None:
    rows = [{"question": asked, "answer": right} for asked, right in CHARTS.items()]
    write_rows(folder / "ChartQA_small.tsv", rows)


def write_options(folder: Path) -> None:
    """Write VStarBench.tsv with all options, the last of each row also at E and at Z."""
    rows = [
        {"question": f"q-{number}?", **dict(zip("ABCD", four, strict=True)), "answer": "A"}
        for number, four in enumerate(OPTIONS)
    ]
    rows[0] |= {"C": "", "E": "n/a", "Z": "white"}
    write_rows(folder / "VStarBench.tsv", [{**dict.fromkeys("ABCDEZ", ""), **row} for row in rows])


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tables of charts and of options, the options shuffled."""
    write_charts(tmp_path)
    write_options(tmp_path)
    shuffle_table("VStarBench", 3, tmp_path)
    monkeypatch.setenv("LMUData", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("kind", FORMATS)
def test_upstream_scores_what_was_answered(
    data: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRED_FORMAT", kind)
    charts = ImageVQADataset("ChartQA_small")
    table = charts.data.drop(columns="image")
    table["prediction"] = [said(answer) for answer in CHARTS.values()]
    dump(table, str(data / f"m_ChartQA_small.{kind}"))
    assert charts.evaluate(str(data / f"m_ChartQA_small.{kind}"))["Overall"][0] == 100

    choices = build_dataset("VStarBench_shuffled_3")
    for wrong in (False, True):
        table = choices.data.drop(columns="image")
        table["prediction"] = [said(four[wrong]) for four in OPTIONS]
        file = data / f"{wrong}_VStarBench_shuffled_3.{kind}"
        dump(table, str(file))
        scores = choices.evaluate(str(file), model="exact_matching")
        assert scores["Overall"][0] == (0 if wrong else 1)


def test_options_are_shown_as_they_stand(data: Path) -> None:
    choices = build_dataset("VStarBench_shuffled_3")
    asked = [choices.build_prompt(number)[-1]["value"] for number in range(len(OPTIONS))]
    for number, four in enumerate(OPTIONS):
        right = choices.data["answer"][number]
        assert f"\n{right}. {four[0]}\n" in asked[number]
        if number:
            assert all(f". {option}\n" in asked[number] for option in four)
    # Letters without an option are not filled.
    assert "\nC. " not in asked[0] and "\nE. " in asked[0] and "\nZ. " in asked[0]


@pytest.mark.parametrize("kind", ("xlsx", "json"))
def test_an_evaluation_scores_what_was_answered(tmp_path: Path, kind: str) -> None:
    """``deepeyes eval run``, from the question to the report."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_charts(folder)
    rows = [
        {"question": f"q-{number}?", "answer": answer}
        for number, answer in enumerate(("None", "007", "1e5", "nan", "N/A"))
    ]
    write_rows(folder / "DeepEyesQuickstart.tsv", rows)
    right = CHARTS | {row["question"]: row["answer"] for row in rows}

    def script(body: Body) -> Reply:
        answer = next(right[asked] for asked in right if asked in question(body))
        return Reply(f"<think>so</think><answer>{answer}</answer>")

    model = {"class": "DeepEyesV2", "environment": "none"}
    recipe = tmp_path / "recipe.json"
    datasets = {
        "ChartQA_small": {"class": "ImageVQADataset", "dataset": "ChartQA_small"},
        "DeepEyesQuickstart": {"class": "DeepEyesQuickstart", "dataset": "DeepEyesQuickstart"},
    }
    with ChatServer(script) as server:
        recipe.write_text(
            json.dumps({"model": {"M": model | {"url": server.url}}, "data": datasets})
        )
        done = subprocess.run(
            [
                *(sys.executable, "-m", "deepeyes_plugins.cli", "eval", "run"),
                *("--config", str(recipe), "--work-dir", str(tmp_path / "out")),
            ],
            cwd=tmp_path,
            env={**os.environ, "LMUData": str(folder), "PRED_FORMAT": kind},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stdout + done.stderr

    results, _ = find_results([tmp_path / "out"])
    by_name = {result.name: result for result in results}
    assert all(result.predictions.suffix == f".{kind}" for result in results if result.predictions)
    assert by_name["ChartQA_small"].metrics["Overall"] == 100
    assert by_name["DeepEyesQuickstart"].metrics["Overall"] == 100
    shown = [sample.prediction for sample in by_name["ChartQA_small"].samples]
    assert shown == list(CHARTS.values())
    assert [sample.prediction for sample in by_name["DeepEyesQuickstart"].samples] == [
        row["answer"] for row in rows
    ]
