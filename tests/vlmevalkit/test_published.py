"""``deepeyes eval rescore``: finished results of upstream, scored as the published figures were."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from deepeyes_plugins.cli.main import app
from deepeyes_plugins.judge.settings import BASE_VARIABLE
from eval_plugins.vlmevalkit.published import prediction_files
from tests.judge.scripts import NO, YES, block
from tests.openai.server import Body, ChatServer, Reply
from tests.serving import LocalServer

FAILED = "Failed to obtain answer via API. HTTP 500"
OPTIONS = {"A": "red", "B": "blue", "C": "lime", "D": "white"}


def choices(predictions: Sequence[str], **columns: object) -> pd.DataFrame:
    """Predictions for questions whose right answer is always B: blue."""
    table = pd.DataFrame({"index": range(len(predictions)), "question": "Which colour?"})
    return table.assign(**OPTIONS, answer="B", prediction=predictions, **columns)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    config = tmp_path / "agent.yaml"
    config.write_text("judge: {retries: 0, retry_wait: 0.01, answer: {tries: 1}}\n")
    monkeypatch.setenv("DEEPEYES_AGENT_CONFIG", str(config))
    monkeypatch.delenv(BASE_VARIABLE, raising=False)
    (tmp_path / "out" / "my_model").mkdir(parents=True)
    return tmp_path / "out" / "my_model"


def write(folder: Path, dataset: str, table: pd.DataFrame) -> None:
    table.to_excel(folder / f"my_model_{dataset}.xlsx", index=False)


def rescore(folder: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["eval", "rescore", str(folder), *arguments])
    return result.exit_code, " ".join(result.output.split())


def scores(
    folder: Path, dataset: str
) -> tuple[list[str], Mapping[str, float], Mapping[str, object]]:
    """Who scored each sample, the summary, and how it was done."""
    stem = f"my_model_{dataset}"
    single = pd.read_excel(folder / f"{stem}_published_results.xlsx")
    summary = pd.read_csv(folder / f"{stem}_published_acc.csv").iloc[0].to_dict()
    how = json.loads((folder / f"{stem}_scoring.json").read_text())
    return list(single["scored_by"]), summary, how


def sees_blue(body: Body) -> Reply:
    assert block(body, "question") == "Which colour?\nA. red\nB. blue\nC. lime\nD. white"
    assert block(body, "reference") == "B. blue"
    return Reply(YES if "sky" in block(body, "answer") else NO)


def test_the_judge_is_asked_where_no_option_is_found(results: Path) -> None:
    table = choices(["B", "The answer is (C).", "Blue.", "as the sky", "as grass", FAILED])
    write(results, "VStarBench", table)
    write(results, "VStarBench_shuffled_3", table)
    upstream = results / "my_model_VStarBench_acc.csv"
    upstream.write_text("as upstream wrote it")

    with ChatServer(sees_blue) as server:
        code, said = rescore(results.parent, "--judge-base-url", server.url)

    assert code == 0
    assert "my_model/my_model_VStarBench_shuffled_3.xlsx: 60.00 % as published" in said
    by, summary, how = scores(results, "VStarBench")
    assert by == ["rule", "rule", "rule", "judge", "judge", "failed"]
    assert summary == {"Overall": 60.0, "answered": 5, "failed": 1, "not_scored": 0}
    assert how == {
        "scoring": "published",
        "judge": "tiny",
        "judge_calls": 2,
        "judge_failures": 0,
        "fallback_used": 2,
    }
    assert upstream.read_text() == "as upstream wrote it"
    # The second pass asked nothing that the first one knew.
    assert len(server.requests) == 2


def test_hrbench_is_the_mean_of_its_rounds(results: Path) -> None:
    table = choices(["B", "B", FAILED, "C"], cycle_category=[0, 0, 1, 1])
    write(results, "HRBench4K", table)
    with ChatServer(sees_blue) as server:
        rescore(results, "--judge-base-url", server.url)
    by, summary, how = scores(results, "HRBench4K")
    assert summary == {"Overall": 50.0, "answered": 3, "failed": 1, "not_scored": 0}
    assert (by.count("judge"), how["judge_calls"]) == (0, 0)


def test_chartqa_after_its_relaxed_match(results: Path) -> None:
    pairs = [
        ("100", "104"),  # within five percent
        ("100", "200"),  # two numbers: the tolerance decides
        ("Yes", "yes"),
        ("Germany and Spain", "Spain, Germany"),
        ("14%", "about fourteen percent"),
        ("2", ""),
    ]
    table = pd.DataFrame(pairs, columns=["answer", "prediction"]).assign(question="How much?")
    write(results, "ChartQA_TEST", table.assign(index=range(len(table)), split="human"))

    def judge(body: Body) -> Reply:
        right = "Germany" in block(body, "reference")
        return Reply(YES if right else NO)

    with ChatServer(judge) as server:
        rescore(results, "--judge-base-url", server.url, "--judge", "tiny")

    by, summary, _ = scores(results, "ChartQA_TEST")
    assert by == ["rule", "rule", "rule", "judge", "judge", "rule"]
    assert summary["Overall"] == 50.0


def test_a_malformed_verdict_and_a_judge_that_is_away_score_nothing(results: Path) -> None:
    write(results, "SEEDBench2_Plus", choices(["B", "as the sky", "as grass"]))
    malformed = Reply(r"\boxed{Yes} or \boxed{No}")
    with ChatServer(lambda body: sees_blue(body) if "sky" in str(body) else malformed) as server:
        code, _ = rescore(results, "--judge-base-url", server.url)
    by, summary, how = scores(results, "SEEDBench2_Plus")
    assert (code, by) == (1, ["rule", "judge", "no verdict"])
    assert (summary["Overall"], summary["not_scored"]) == (100, 1)
    assert (how["judge_calls"], how["judge_failures"], how["fallback_used"]) == (2, 1, 1)

    with LocalServer() as gone:
        url = gone.root
    assert rescore(results, "--judge-base-url", url, "--judge", "other")[0] == 1
    assert scores(results, "SEEDBench2_Plus")[0] == ["rule", "no verdict", "no verdict"]


def test_what_cannot_be_scored_is_refused(results: Path) -> None:
    assert "has no predictions of benchmarks" in rescore(results)[1]
    write(results, "VStarBench", choices(["as the sky"]))
    code, said = rescore(results)
    assert code == 1 and "no judge is configured" in said
    write(results, "VStarBench", choices(["B"]).drop(columns="B"))
    assert "lacks the columns B" in rescore(results)[1]


def test_a_run_and_the_links_to_it_are_one(results: Path) -> None:
    """An upstream checkout links the files of its newest run into the folder above."""
    run = results / "T20261124_G0123abc"
    run.mkdir()
    write(run, "ChartQA_TEST", choices(["blue"]))
    (results / "my_model_ChartQA_TEST.xlsx").symlink_to(run / "my_model_ChartQA_TEST.xlsx")
    assert prediction_files(results) == [run / "my_model_ChartQA_TEST.xlsx"]
